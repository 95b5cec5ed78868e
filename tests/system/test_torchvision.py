"""torchvision works beside this torch, whether or not its compiled operators load."""

import subprocess
import sys

import torch

from edgeopt.system import torchvision


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_backbone_forward_keeps_batch_and_classes():
    model = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_transforms_are_version_two():
    resized = torchvision.transforms.Resize((4, 6), antialias=True)(torch.zeros(1, 8, 12))
    assert resized.shape == (1, 4, 6)
    assert torchvision.transforms.__name__ == "torchvision.transforms.v2"


def test_datasets_offer_mirrors_and_folders():
    assert torchvision.datasets.FashionMNIST.mirrors
    assert len(torchvision.datasets.MNIST.resources) == 4
    assert torchvision.datasets.ImageFolder.__name__ == "ImageFolder"


def test_box_operators_exist_after_import():
    assert hasattr(torch.ops.torchvision, "nms")
    assert hasattr(torch.ops.torchvision, "qnms")


def test_operators_that_exist_are_not_declared_again():
    result = run_python(
        "import torch\n"
        "keep = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "schema = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'\n"
        "for name in ('nms', 'qnms'):\n"
        "    if not hasattr(torch.ops.torchvision, name):\n"
        "        keep.define(name + schema)\n"
        "from edgeopt.system import torchvision\n"
        "print(torchvision.DECLARED_OPERATORS)\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "None"


def test_missing_torchvision_is_named():
    result = run_python(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torchvision' else found(name)\n"
        "import edgeopt.system.torchvision\n"
    )
    assert result.returncode == 1
    assert "torchvision is not installed" in result.stderr
