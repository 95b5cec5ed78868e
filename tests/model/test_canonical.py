"""Layers that are called as functions become modules; BatchNorm is folded."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from edgeopt.model.canonical import fold_batch_norm, layers_as_modules
from edgeopt.model.channel_groups import FIXED, channel_groups
from edgeopt.model.networks import SmallCNN
from edgeopt.quantization.rescaling import barrier_groups, equalize, rescale
from tests.networks import OwnConv, OwnLayers, SamePadded, assert_same_function

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own_layers() -> nn.Module:
    torch.manual_seed(0)
    model = OwnLayers()
    model.norm.running_mean.normal_(0, 0.2)
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


def kinds(model: nn.Module) -> list[type]:
    called = [type(module) for module in model.modules() if not [*module.children()]]
    return [kind for kind in called if kind is not nn.Module]


def test_layers_as_modules_finds_every_call_and_keeps_the_function(own_layers):
    changed = layers_as_modules(own_layers)
    assert type(changed).__name__ == "OwnLayers"
    assert_same_function(changed, own_layers, IMAGES)
    found = [kind.__name__ for kind in kinds(changed)]
    assert sorted(found) == ["BatchNorm2d", "Conv2d", "Conv2d", "Conv2d", "GroupNorm", "Linear"]


def test_layers_as_modules_leaves_its_argument_alone(own_layers):
    before = copy.deepcopy(own_layers.state_dict())
    changed = layers_as_modules(own_layers.train())
    assert own_layers.training
    assert not changed.training
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    torch.testing.assert_close(own_layers.state_dict(), before)


def test_layers_as_modules_needs_no_other_form_where_all_layers_are_modules():
    assert type(layers_as_modules(SmallCNN())) is SmallCNN


class Twice(nn.Module):
    """One set of weights in two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.conv2d(images, self.weight).relu()
        return self.head(functional.conv2d(hidden, self.weight).mean((2, 3)))


def test_weights_that_two_calls_share_stay_as_they_are():
    model = Twice().eval()
    changed = layers_as_modules(model)
    assert_same_function(changed, model, IMAGES)
    assert kinds(changed) == [nn.Linear]


class OfTheInput(nn.Module):
    """A convolution whose weights the image makes, and one that has the batch's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.conv2d(images, self.base * images.mean())
        hidden = functional.batch_norm(hidden, None, None, training=True)
        return self.head(hidden.mean((2, 3)))


def test_weights_that_the_input_makes_stay_as_they_are():
    model = OfTheInput().eval()
    changed = layers_as_modules(model)
    assert_same_function(changed, model, IMAGES)
    assert kinds(changed) == [nn.Linear]


def test_fold_batch_norm_folds_one_that_is_called_as_a_function(own_layers):
    folded = fold_batch_norm(own_layers)
    assert_same_function(folded, own_layers, IMAGES)
    assert nn.BatchNorm2d not in kinds(folded)


def test_every_channel_of_own_layers_can_be_rescaled(own_layers):
    folded = fold_batch_norm(own_layers)
    groups = channel_groups(folded, example=IMAGES[:1])
    written = [ports.outputs for name, ports in groups.layers.items() if "head" not in name]
    assert [len(outputs) for outputs in written] == [8, 12, 16, 16]
    fixed = [bool((outputs == FIXED).any()) for outputs in written]
    assert fixed == [False, False, True, False]  # a GroupNorm compares the channels that it reads
    factors = 2 ** torch.randn(groups.count, generator=torch.Generator().manual_seed(1))
    factors[barrier_groups(groups)], factors[FIXED] = 1.0, 1.0
    assert (factors != 1).sum() == 8 + 12 + 16
    assert_same_function(rescale(folded, groups, factors), own_layers, IMAGES)


def outlier_ratio(model: nn.Module, place: str) -> float:
    """Widest channel over the median one of what a module writes."""
    seen = []
    handle = model.get_submodule(place).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model(IMAGES)
    handle.remove()
    wide = seen[0].abs().amax((0, 2, 3))
    return float(wide.max() / wide.median())


def test_equalize_brings_back_a_channel_of_own_layers(own_layers):
    planted = copy.deepcopy(own_layers)
    with torch.no_grad():
        planted.norm.weight[2] *= 1000
        planted.norm.bias[2] *= 1000
    changed = equalize(planted, images=IMAGES)
    assert_same_function(changed, planted, IMAGES)
    before, after = outlier_ratio(planted, "norm"), outlier_ratio(changed, "stem")
    assert before > 500
    assert after < 2 * before**0.5  # the weights that read it take the other half of the factor


class Shifted(nn.ReLU):
    """Not what its parent is."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden - 1.0)


def test_a_class_that_does_something_else_is_not_taken_for_its_parent():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), Shifted(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 32 * 32, 2)
    ).eval()
    groups = channel_groups(fold_batch_norm(model), example=IMAGES[:1])
    assert (groups.layers["0"].outputs == FIXED).all()
    assert (groups.layers["2"].outputs != FIXED).all()


def test_layers_as_modules_traces_by_torch_export_what_torch_fx_cannot():
    torch.manual_seed(0)
    model = SamePadded().eval()
    with pytest.raises(ValueError, match=r"torch\.fx cannot trace SamePadded"):
        layers_as_modules(model)
    changed = layers_as_modules(model, example=IMAGES[:1])
    assert type(changed).__name__ == "SamePadded"
    assert_same_function(changed, model, IMAGES)
    found = sorted(kind.__name__ for kind in kinds(changed))
    assert found == ["BatchNorm2d", "Conv2d", "Conv2d", "Linear"]


def test_every_channel_of_a_network_traced_by_torch_export_can_be_rescaled():
    torch.manual_seed(0)
    model = SamePadded().eval()
    folded = fold_batch_norm(model, example=IMAGES)
    assert nn.BatchNorm2d not in kinds(folded)
    groups = channel_groups(folded, example=IMAGES[:1])
    factors = 2 ** torch.randn(groups.count, generator=torch.Generator().manual_seed(1))
    factors[barrier_groups(groups)], factors[FIXED] = 1.0, 1.0
    assert (factors != 1).sum() == 8
    assert_same_function(rescale(folded, groups, factors), model, IMAGES)
    assert_same_function(equalize(model, images=IMAGES, inserted=True), model, IMAGES)


@pytest.mark.parametrize("kind", [OwnLayers, SamePadded])
def test_layers_as_modules_can_be_sent_to_another_process(kind):
    torch.manual_seed(0)
    changed = fold_batch_norm(kind().eval(), example=IMAGES)
    again = pickle.loads(pickle.dumps(changed))
    assert_same_function(again, changed, IMAGES)
    assert_same_function(layers_as_modules(copy.deepcopy(again)), changed, IMAGES)
    assert [name for name, _ in again.named_parameters()] == [
        name for name, _ in changed.named_parameters()
    ]


def test_code_that_asks_for_values_cannot_be_traced():
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(ValueError, match=r"torch\.fx and torch\.export cannot trace Branching"):
        layers_as_modules(Branching(), example=IMAGES)


class Code(nn.Module):
    """Colour images to two classes, by what a test says."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.weight, self.code = nn.Parameter(torch.randn(3, 3, 1, 1)), forward

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.code(self, images).mean((2, 3))


class Padded(OwnConv):
    """A convolution that changes how it is called."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return super().__call__(functional.pad(images, (1, 1, 1, 1), value=2.0))


class Gate(nn.Sigmoid):
    """A sigmoid that a network's code asks for."""


def in_place(self, images):
    hidden = functional.conv2d(images, self.weight)
    hidden.relu_()
    return hidden * 2


def into_a_slice(self, images):
    hidden = self.conv(images)
    if hidden.shape[2] > 1000:  # torch.fx cannot trace it
        return hidden
    moved = torch.zeros_like(hidden)
    moved[:, :1] = hidden[:, 1:2]
    moved[:, 1:] = hidden[:, 1:]
    return moved


def gated(self, images):
    for layer in (self.conv, self.gate):
        images = images * layer(images) if isinstance(layer, Gate) else layer(images)
    return functional.conv2d(images, self.weight)


def conv(kind: type = nn.Conv2d) -> nn.Module:
    return kind(3, 3, 1)


CODE = {
    "a module has the name of a function": (
        lambda self, x: self.conv2d(functional.conv2d(x, self.weight).relu()),
        {"conv2d": conv()},
    ),
    "what is changed in place": (in_place, {}),
    "what is written into a slice": (into_a_slice, {"conv": conv()}),
    "code that asks for a class": (gated, {"conv": conv(OwnConv), "gate": Gate()}),
    "a class with a call of its own": (lambda self, x: self.conv(x), {"conv": conv(Padded)}),
    "a module called dim": (
        lambda self, x: self.norm(y := self.conv(x)) + self.dim(y),
        {"conv": conv(), "norm": nn.BatchNorm2d(3), "dim": conv()},
    ),
    "one norm of two layers": (
        lambda self, x: self.norm(self.b(self.norm(self.a(x)).relu())),
        {"a": conv(), "b": conv(), "norm": nn.BatchNorm2d(3)},
    ),
    "a norm whose input has a name": (
        lambda self, x: self.norm(input=self.conv(x)),
        {"conv": conv(), "norm": nn.BatchNorm2d(3)},
    ),
    "a layer whose weights are read elsewhere": (
        lambda self, x: functional.conv2d(self.norm(self.conv(x)).relu(), self.conv.weight),
        {"conv": conv(), "norm": nn.BatchNorm2d(3)},
    ),
    "weights with a parametrization": (
        lambda self, x: self.norm(self.conv(x)),
        {"conv": weight_norm(conv()), "norm": nn.BatchNorm2d(3)},
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_fold_batch_norm_keeps_the_function_of(name):
    forward, modules = CODE[name]
    torch.manual_seed(0)
    model = Code(forward, **modules).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    for example in (None, IMAGES):
        try:
            folded = fold_batch_norm(model, example=example)
        except ValueError:
            assert example is None or name == "what is written into a slice"
        else:
            assert_same_function(folded, model, IMAGES)


def test_fold_batch_norm_leaves_layers_with_hooks():
    torch.manual_seed(0)
    model = nn.Sequential(conv(), nn.BatchNorm2d(3)).eval()
    model[0].register_forward_hook(lambda _, __, output: output + 1)
    assert_same_function(fold_batch_norm(model), model, IMAGES)


def test_what_a_rewritten_network_cannot_do_any_more_is_a_value_error():
    def asks(self, images):
        return self.norm(self.conv(images)) * self.norm.num_features

    torch.manual_seed(0)
    model = Code(asks, conv=conv(), norm=nn.BatchNorm2d(3)).eval()
    with pytest.raises(ValueError, match=r"Code cannot be rewritten: .* 'num_features'"):
        fold_batch_norm(model, example=IMAGES)


def test_a_graph_would_not_call_the_hooks_of_its_network(own_layers):
    own_layers.register_forward_pre_hook(lambda _, given: (given[0] * 3,))
    with pytest.raises(ValueError, match="OwnLayers has hooks"):
        layers_as_modules(own_layers)


def test_layers_as_modules_keeps_the_type_of_numbers(own_layers):
    exact = own_layers.double()
    assert_same_function(layers_as_modules(exact), exact, IMAGES.double())


def test_a_network_for_so_many_images_cannot_be_traced():
    class ByBatch(SamePadded):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images * 2 if images.shape[0] > 2 else images)

    with pytest.raises(ValueError, match=r"torch\.fx and torch\.export cannot trace ByBatch"):
        layers_as_modules(ByBatch().eval(), example=IMAGES)
