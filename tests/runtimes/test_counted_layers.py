"""MACs of layers that are neither convolution nor linear, by hand, on every runtime."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.model.networks import set_deterministic
from edgeopt.pruning import count_macs
from edgeopt.runtimes import export_artifact, labelled, runtime_named
from edgeopt.runtimes.integer_share import executed_macs

WIDTH, SIDE = 8, 6
TOKENS = SIDE * SIDE
SHAPE = (1, 1, 2 * SIDE, 2 * SIDE)
AROUND = WIDTH * TOKENS * 9 + WIDTH * 4  # the convolution before, and the classifier


class Around(nn.Module):
    """A convolution of stride 2, something on its pixels as a sequence, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.conv(images)).flatten(2).transpose(1, 2)  # [B, T, C]
        return self.head(self.inside(hidden).mean(1))


class Recurrent(Around):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def inside(self, hidden: Tensor) -> Tensor:
        return self.gru(hidden)[0]


class Enlarging(Around):
    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.transposed(functional.relu(self.conv(images))).mean((2, 3)))


class Attending(Around):
    def inside(self, hidden: Tensor) -> Tensor:
        shares = torch.einsum("btc,bsc->bts", hidden, hidden).softmax(-1)
        return torch.einsum("bts,bsc->btc", shares, hidden)


class AttendingAtOnce(Around):
    def inside(self, hidden: Tensor) -> Tensor:
        one_head = hidden.unsqueeze(1)
        return functional.scaled_dot_product_attention(one_head, one_head, one_head).squeeze(1)


BY_HAND = {
    Recurrent: TOKENS * 3 * 2 * WIDTH * WIDTH,  # three gates, of what comes and of the state
    Enlarging: TOKENS * WIDTH * WIDTH * 2 * 2,  # each pixel times the whole filter
    Attending: 2 * TOKENS * TOKENS * WIDTH,
    AttendingAtOnce: 2 * TOKENS * TOKENS * WIDTH,
}
# torch's int8 of a transposed convolution needs no trial here, nor ExecuTorch's unrolled GRU.
LEFT_OUT = {("torch", Enlarging), ("executorch", Recurrent)}
CASES = [
    (runtime, kind)
    for runtime in ("torch", "onnxruntime", "openvino", "executorch")
    for kind in BY_HAND
    if (runtime, kind) not in LEFT_OUT
]


@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size:UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("runtime", "kind"), CASES)
def test_all_macs_are_counted_and_what_computes_in_float_is_not_called_int8(
    runtime, kind, tmp_path
) -> None:
    if reason := runtime_named(runtime).unavailable():
        pytest.skip(reason)
    set_deterministic(0)
    calibration = [(torch.rand(8, *SHAPE[1:]), torch.arange(8) % 4)]
    artifact = export_artifact(
        kind().eval(),
        tmp_path / "own",
        runtime=runtime,
        precision="int8",
        input_shape=SHAPE,
        calibration=calibration,
    )
    counted = executed_macs(artifact)
    assert sum(operation.macs for operation in counted) == AROUND + BY_HAND[kind]
    in_float = sum(operation.macs for operation in counted if operation.precision != "int8")
    small = in_float <= 0.05 * (AROUND + BY_HAND[kind])
    assert labelled(artifact).precision == ("int8" if small else "int8-mixed")
    if kind is Recurrent:
        assert in_float == BY_HAND[kind]


@pytest.mark.parametrize("kind", BY_HAND)
def test_macs_of_a_network_are_those_of_torch_by_parts(kind) -> None:
    assert count_macs(kind(), example_input=torch.rand(SHAPE)) == AROUND + BY_HAND[kind]


def test_macs_of_an_encoder_do_not_hide_in_one_operator() -> None:
    class Encoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(images.flatten(2).transpose(1, 2)).mean(1)

    # per layer: four projections, two linear layers, and the two products of attention
    layer = 25 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 25 * 25 * 16
    assert count_macs(Encoding(), example_input=torch.rand(1, 16, 5, 5)) == 2 * layer
