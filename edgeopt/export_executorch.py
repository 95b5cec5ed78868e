"""fp32 model -> ExecuTorch program for the XNNPACK backend, in fp32 or int8."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeopt._upstream import import_extra, known_noise_silenced, native_stderr_logged
from edgeopt.parity import TOLERANCE, UNCHECKED, Parity, check_parity, parity_images
from edgeopt.quantization import xnnpack_quantizer

XNNPACK = "executorch.backends.xnnpack.partition.xnnpack_partitioner"


def write_executorch(
    model: nn.Module,
    path: Path,
    *,
    precision: str,
    input_shape: tuple[int, ...],
    batches: Sequence[Tensor] = (),
    tolerance: float = TOLERANCE,
) -> Parity:
    """Lower ``model`` to a ``.pte`` file; the fp32 program is held to torch's logits.

    int8 is PT2E static quantization, per channel, calibrated on ``batches``; its logits are not
    compared.
    Source: https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-overview.html
    """
    exir = import_extra("executorch.exir", extra="executorch")
    partitioner = import_extra(XNNPACK, extra="executorch").XnnpackPartitioner
    images = parity_images(input_shape)
    with known_noise_silenced(), torch.no_grad():
        lowered = model if precision == "fp32" else _quantize_pt2e(model, batches)
        program = torch.export.export(lowered, (images,))
        edge = exir.to_edge_transform_and_lower(program, partitioner=[partitioner()])
        path.write_bytes(edge.to_executorch().buffer)
        if precision != "fp32":
            return UNCHECKED
        return check_parity(model(images), run_executorch(path, images), tolerance=tolerance)


def run_executorch(path: Path, images: Tensor) -> Tensor:
    """Logits of an ExecuTorch program."""
    pybindings = import_extra("executorch.extension.pybindings._C", extra="executorch")
    with native_stderr_logged():
        return pybindings._load_for_executorch(str(path)).forward((images,))[0]


def _quantize_pt2e(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    batch = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (batches[0],), dynamic_shapes=batch).module()
    prepared = prepare_pt2e(exported, xnnpack_quantizer())
    for images in batches:
        prepared(images)
    return convert_pt2e(prepared)
