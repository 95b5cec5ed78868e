"""A fifth runtime, as another package would bring it: NumPy runs networks of linear layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import numpy as np
from torch import nn

from edgeopt.runtimes.contract import Operation, Runtime, Session
from edgeopt.runtimes.parity import check_parity, parity_images


class LinearSession(Session):
    """Arrays that are multiplied; NumPy's threads are the process's."""

    threads = 1

    def __init__(self, artifact, *, threads):
        super().__init__(artifact)
        self._arrays = read(artifact.path)

    @contextmanager
    def _ready(self, images):
        yield partial(run, self._arrays, images)

    def _logits(self, returned):
        return returned


class LinearRuntime(Runtime):
    """Linear layers one after the other, in float32."""

    name = "numpy-linear"
    title = "NumPy"
    marker = "P"
    suffix = ".npz"
    precisions = ("fp32",)
    session = LinearSession

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


def read(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


def run(arrays, images):
    rows = images.reshape(len(images), -1)
    for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
        rows = rows @ weight.T + bias
    return rows
