import re
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn

from edgeopt.model.networks import (
    SmallCNN,
    build_model,
    check_network,
    deterministic_algorithms,
    input_channels,
    set_deterministic,
)
from edgeopt.model.weights import load_weights
from edgeopt.system.torchvision import models as torchvision_models


def tiny_factory(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


def broken_factory(num_classes):
    return num_classes


def raising_factory(num_classes):
    raise KeyError("depth")


def exiting_factory(num_classes):
    sys.exit("no GPU")


def factory_without_classes():
    return nn.Flatten()


class Exits(nn.Module):
    def forward(self, images):
        sys.exit(3)


class Several(nn.Module):
    def forward(self, images):
        return [images]


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
    assert build_model("tests.model.test_networks:tiny_factory", num_classes=5)[1].out_features == 5


def test_local_weights_are_loaded(tmp_path, small_cnn):
    torch.save(small_cnn.state_dict(), tmp_path / "weights.pt")
    options = {"conv1_channels": 6, "conv2_channels": 8, "num_classes": 4}
    loaded = build_model("small_cnn", weights=str(tmp_path / "weights.pt"), **options)
    assert torch.equal(loaded.conv2.weight, small_cnn.conv2.weight)
    with pytest.raises(ValueError, match=r"weights\.pt do not fit SmallCNN: .*conv1.weight \[6, 1"):
        load_weights(SmallCNN(), tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet9000", "unknown model 'resnet9000'; allowed: small_cnn, package.module:factory"),
        ("no.such.package:make", "'no.such.package:make' cannot be imported"),
        (
            "tests.model.test_networks:absent",
            "'tests.model.test_networks:absent' cannot be imported",
        ),
        (":make", "':make' cannot be imported: ValueError"),
        ("tests.model.test_networks:broken_factory", "returned int; allowed: nn.Module"),
        (
            "tests.model.test_networks:raising_factory",
            "fails with num_classes=10: KeyError: 'depth'",
        ),
        (
            "tests.model.test_networks:exiting_factory",
            "fails with num_classes=10: SystemExit: no GPU",
        ),
        (
            "tests.model.test_networks:factory_without_classes",
            "num_classes=10: TypeError: .*argument",
        ),
    ],
)
def test_unknown_models_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        build_model(name)


@pytest.mark.parametrize("name", ["small_cnn", "tests.model.test_networks:tiny_factory"])
def test_weights_that_torchvision_does_not_have(name):
    with pytest.raises(ValueError, match=f"torchvision has no weights of '{name}'; allowed"):
        build_model(name, weights="torchvision")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(2)", "SystemExit: 2"),
        ("1 / 0", "ZeroDiv"),
    ],
)
def test_build_model_names_the_module_that_cannot_be_imported(
    tmp_path, monkeypatch, source, message
):
    (tmp_path / "own_nets.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"model 'own_nets:f' cannot be imported: {message}"):
        build_model("own_nets:f")


def test_build_model_reads_weights_from_a_folder(tmp_path):
    name = "tests.model.test_networks:tiny_factory"
    given = tiny_factory(3)
    torch.save(
        {"state_dict": given.state_dict()}, tmp_path / "tests-model-test_networks-tiny_factory.pt"
    )
    model = build_model(name, num_classes=3, weights=tmp_path)
    assert torch.equal(model[1].weight, given[1].weight)
    with pytest.raises(FileNotFoundError, match=r"no weights of resnet18 at .*resnet18\.pt"):
        build_model("resnet18", weights=tmp_path)


def test_build_model_says_that_torchvision_cannot_be_reached(monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision_models, "get_model", unreachable)
    with pytest.raises(
        OSError, match=r"resnet18 cannot be downloaded \(no route to host\); allowed"
    ):
        build_model("resnet18", weights="torchvision")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "mobilenet_v3_small"])
def test_torchvisions_weights_get_a_head_for_other_classes(monkeypatch, name):
    random = torchvision_models.get_model(name, num_classes=1000)
    monkeypatch.setattr(torchvision_models, "get_model", lambda *_, **__: random)
    model = build_model(name, num_classes=7, weights="torchvision").eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("training", [True, False])
def test_check_network_passes_and_leaves_the_network_as_it_was(training):
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 4)).train(training)
    check_network(model, name="own", input_shape=(2, 1, 28, 28), num_classes=4)
    assert model.training == training
    assert model[0].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_factory(7), "gives [2, 7] for 2 images of 4 classes; allowed: logits [2, 4]"),
        (nn.Conv2d(1, 4, 1), "gives [2, 4, 28, 28] for 2 images of 4 classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), "of [2, 1, 28, 28]: RuntimeError: mat1"),
        (nn.Conv2d(3, 4, 1), "(its first convolution takes channels: 3): RuntimeError"),
        (Exits(), "fails on images [B, C, H, W] of [2, 1, 28, 28]: SystemExit: 3"),
        (nn.Sequential(nn.MaxPool2d(2), Exits()), "SystemExit: 3"),
        (Several(), "gives list for 2 images of 4 classes; allowed: logits [2, 4], a tensor"),
    ],
)
def test_check_network_names_the_model_and_what_it_gives(model, message):
    with pytest.raises(ValueError, match=rf"model 'own' .*{re.escape(message)}"):
        check_network(model, name="own", input_shape=(2, 1, 28, 28), num_classes=4)


def test_input_channels_are_those_of_the_first_convolution():
    grey_to_colour = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 8, 3))
    assert input_channels(grey_to_colour) == 1
    assert input_channels(build_model("mobilenet_v3_small")) == 3
    assert input_channels(tiny_factory(2)) is None


def test_a_pooling_over_the_whole_map_is_no_stride():
    def net(side: int) -> nn.Module:
        layers = [nn.Conv2d(c, 8, 3, stride=2, padding=1) for c in (1, 8, 8)]
        return nn.Sequential(*layers, nn.AvgPool2d(side), nn.Flatten(), nn.Linear(8, 4))

    check_network(net(4), name="own", input_shape=(1, 1, 28, 28), num_classes=4)
    with pytest.raises(ValueError, match="images of 7 pixels are smaller than the stride of own"):
        check_network(net(1), name="own", input_shape=(1, 1, 7, 7), num_classes=4)
