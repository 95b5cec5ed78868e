import pytest
import torch
from torch import nn

from edgeopt.model import (
    SmallCNN,
    build_model,
    deterministic_algorithms,
    load_weights,
    set_deterministic,
)


def tiny_factory(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


def broken_factory(num_classes):
    return num_classes


def test_small_cnn_has_the_parameters_counted_by_hand():
    model = SmallCNN()
    conv1, conv2, classifier = 16 * 9 + 16, 32 * 16 * 9 + 32, 32 * 49 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == conv1 + conv2 + classifier
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_small_cnn_computes_what_the_functional_form_does(small_cnn):
    images = torch.rand(2, 1, 28, 28)
    hidden = images
    for conv in (small_cnn.conv1, small_cnn.conv2):
        hidden = nn.functional.conv2d(hidden, conv.weight, conv.bias, padding=1)
        hidden = nn.functional.max_pool2d(hidden.clamp(min=0), 2)
    expected = hidden.flatten(1) @ small_cnn.classifier.weight.T + small_cnn.classifier.bias
    torch.testing.assert_close(small_cnn(images), expected)


@pytest.mark.parametrize("name", ["conv1_channels", "conv2_channels", "num_classes"])
def test_small_cnn_refuses_empty_layers(name):
    with pytest.raises(ValueError, match=f"{name} is 0; allowed: 1 or more"):
        SmallCNN(**{name: 0})


def test_same_seed_same_weights():
    weights = []
    for seed in (3, 3, 4):
        set_deterministic(seed)
        weights.append(SmallCNN().conv1.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_deterministic_algorithms_is_undone():
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_build_model_by_name_and_by_factory():
    assert build_model("small_cnn", num_classes=3, conv1_channels=4).conv1.out_channels == 4
    backbone = build_model("mobilenet_v3_small", num_classes=7)
    assert backbone.classifier[-1].out_features == 7
    assert build_model("tests.test_model:tiny_factory", num_classes=5)[1].out_features == 5


def test_local_weights_are_loaded(tmp_path, small_cnn):
    torch.save(small_cnn.state_dict(), tmp_path / "weights.pt")
    options = {"conv1_channels": 6, "conv2_channels": 8, "num_classes": 4}
    loaded = build_model("small_cnn", weights=str(tmp_path / "weights.pt"), **options)
    assert torch.equal(loaded.conv2.weight, small_cnn.conv2.weight)
    with pytest.raises(ValueError, match=r"(?s)weights\.pt do not fit SmallCNN: .*conv1.weight"):
        load_weights(SmallCNN(), tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet9000", "unknown model 'resnet9000'; allowed: small_cnn, package.module:factory"),
        ("no.such.package:make", "'no.such.package:make' cannot be imported"),
        ("tests.test_model:absent", "'tests.test_model:absent' cannot be imported"),
        ("tests.test_model:broken_factory", "returned int; allowed: nn.Module"),
    ],
)
def test_unknown_models_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        build_model(name)


@pytest.mark.parametrize("name", ["small_cnn", "tests.test_model:tiny_factory"])
def test_weights_that_torchvision_does_not_have(name):
    with pytest.raises(ValueError, match=f"torchvision has no weights of '{name}'; allowed"):
        build_model(name, weights="torchvision")
