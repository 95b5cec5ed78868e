"""A foreign runtime, as another package would bring it: NumPy runs networks of linear layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edgeopt.runtimes import registry
from edgeopt.runtimes.contract import Operation, Runtime
from edgeopt.runtimes.parity import check_parity, parity_images
from edgeopt.system.host import RUNTIME_GROUP
from tests.linear_session import read, run

NAME = "numpy-linear"


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Install a package that registers the runtime, as ``pip install`` would."""
    info = folder / "site" / "edgeopt_linear-1.0.dist-info"
    info.mkdir(parents=True)
    about = ["Metadata-Version: 2.1", "Name: edgeopt-linear", "Version: 1.0"]
    about += ["Requires-Dist: PyYAML>=6; python_version > '3'"]
    (info / "METADATA").write_text("\n".join(about) + "\n")
    entry = f"[{RUNTIME_GROUP}]\n{NAME} = tests.linear_runtime:LinearRuntime\n"
    (info / "entry_points.txt").write_text(entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(info.parent)
        registry.registered.cache_clear()
        yield
    registry.registered.cache_clear()


class LinearRuntime(Runtime):
    """Linear layers one after the other, in float32."""

    name = NAME
    title = "NumPy"
    marker = "P"
    suffix = ".npz"
    precisions = ("fp32",)
    session = "tests.linear_session:LinearSession"
    packages = ("numpy",)

    def write(self, model, path, *, input_shape, tolerance, **_):
        """Write weights and biases in the order of the layers."""
        layers = [module for module in model.modules() if not [*module.children()]]
        if odd := [m for m in layers if not isinstance(m, nn.Flatten | nn.Linear)]:
            raise TypeError(f"{type(odd[0]).__name__} is not linear")
        linear = [module for module in layers if isinstance(module, nn.Linear)]
        arrays = [t.detach().numpy() for m in linear for t in (m.weight, m.bias)]
        with path.open("wb") as file:
            np.savez(file, *arrays)
        images = parity_images(input_shape)
        expected = model(images).detach()
        return check_parity(expected, run(arrays, images.numpy()), tolerance=tolerance)

    def operations(self, artifact) -> Iterator[Operation]:
        """One product a layer."""
        batch = artifact.input_shape[0]
        weights = read(artifact.path)[::2]
        names = ["input", *(f"layer{number}" for number in range(len(weights)))]
        yield Operation("input", writes=(("input", 4 * int(np.prod(artifact.input_shape))),))
        for (source, result), weight in zip(pairwise(names), weights, strict=True):
            writes = ((result, 4 * batch * len(weight)),)
            macs = batch * weight.size
            yield Operation("product", (source,), writes, macs=macs, precision="fp32")
        yield Operation("output", reads=(names[-1],))

    def weight_bytes(self, artifact) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in read(artifact.path))
