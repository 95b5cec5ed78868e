"""A folder that is handed over runs without edgeopt, and says in one line what is wrong with it."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeopt.data import Preprocessing, Split
from edgeopt.data.images import read_picture
from edgeopt.data.preprocessing import INTERPOLATIONS, RESIZES
from edgeopt.devices import ship
from edgeopt.devices.bundle import conversion
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.registry import RUNTIMES, load_session
from tests.artifacts import CLASSES, artifact_of
from tests.conftest import striped_split
from tests.devices.bare import bare_python, run
from tests.linear_runtime import NAME, installed

NAMES = ["first", "second", "third/odd", "fourth"]
GREY = Preprocessing(image_size=28, channels=1)


def written(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def images() -> Split:
    drawn = striped_split(12, seed=3)
    pixels = (drawn.pixels * 255).round().to(torch.uint8)
    return Split(pixels, drawn.labels, mean=0.25, std=0.5)


def files_of(artifact, images) -> dict[str, bytes]:
    how = {"preprocessing": GREY, "class_names": NAMES}
    return ship.shipped_files(artifact, images=images, **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images) -> Path:
    files = files_of(artifact_of("onnxruntime", "int8"), images)
    return written(files, tmp_path_factory.mktemp("ship"))


@pytest.fixture
def changed(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "ship"))


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> Path:
    """A Python with the packages that the folder requires."""
    return bare_python(tmp_path_factory.mktemp("device"), "numpy", "pillow", "onnxruntime")


def test_the_folder_runs_where_there_is_no_edgeopt(folder, device, images, tmp_path):
    assert "No module named 'edgeopt'" in run(device, "-c", "import edgeopt", cwd=tmp_path).stderr
    assert "No module named 'torch'" in run(device, "-c", "import torch", cwd=tmp_path).stderr
    tested = run(device, folder / "predict.py", "--self-test", cwd=tmp_path)
    assert (tested.returncode, tested.stderr) == (0, "")
    assert tested.stdout == (
        "self-test passed: the logits of 10 pictures are those stored, bit for bit\n"
    )
    pixels = images.pixels[11, 0].numpy()
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    predicted = run(device, folder / "predict.py", "picture.png", cwd=tmp_path)
    assert (predicted.returncode, predicted.stderr) == (0, "")
    rows = [line.split("%  ") for line in predicted.stdout.splitlines()]
    normalized = (pixels[None, None] / np.float32(255) - np.float32(0.25)) / np.float32(0.5)
    logits = load_session(artifact_of("onnxruntime", "int8")).score(normalized)[0]
    shares = torch.from_numpy(logits).double().softmax(0)
    assert [name for _, name in rows] == [NAMES[i] for i in shares.argsort(descending=True)]
    expected = 100 * shares.sort(descending=True).values
    assert [float(share) for share, _ in rows] == pytest.approx(expected.tolist(), abs=0.006)
    assert not [*folder.rglob("__pycache__")]


def test_the_folder_is_the_same_every_time_and_complete(folder, images):
    files = files_of(artifact_of("onnxruntime", "int8"), images)
    assert files == {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    told = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder)
    assert told.returncode == 0
    assert len(files["SHA256SUMS"].splitlines()) == len(files) - 1
    pinned = dict(line.split("==") for line in files["requirements.txt"].decode().split())
    assert pinned == {name: metadata.version(name) for name in ("numpy", "pillow", "onnxruntime")}


def test_the_folder_is_for_python_3_9_and_newer(folder):
    command = [str(Path(sys.executable).with_name("vermin")), "-t=3.9-", "--no-tips", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_passes_its_self_test(runtime, images, tmp_path):
    shipped = written(files_of(artifact_of(runtime, "fp32"), images), tmp_path)
    assert ship.self_tested(shipped).startswith("self-test passed: the logits of 10 pictures")


def test_batches_are_filled_up(images, tmp_path):
    shipped = written(files_of(artifact_of("openvino", "int8", 4), images), tmp_path)
    assert ship.self_tested(shipped).endswith("bit for bit")


def test_the_session_of_a_registered_runtime_goes_along(images, tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, CLASSES)).eval()
    target = {"runtime": NAME, "precision": "fp32", "input_shape": (1, 1, 28, 28)}
    with installed(tmp_path):
        artifact = export_artifact(network, tmp_path / "linear", **target)
        shipped = written(files_of(artifact, images), tmp_path / "ship")
    python = bare_python(tmp_path / "device", "numpy", "pillow")
    tested = run(python, shipped / "predict.py", "--self-test", cwd=tmp_path)
    assert tested.stdout.startswith("self-test passed"), tested.stderr


def sign_again(folder: Path) -> None:
    """Write the checksums of what is there."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    names = [line.split(maxsplit=1)[1] for line in lines]
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    text = "".join(f"{d}  {name}\n" for d, name in zip(digests, names, strict=True))
    (folder / "SHA256SUMS").write_text(text)


def another_artifact(folder: Path) -> None:
    [path] = folder.glob("*.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def another_class_list(folder: Path) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text().replace("second", "zeroth"))


def no_artifact(folder: Path) -> None:
    [path] = folder.glob("*.onnx")
    path.unlink()


def broken_artifact(folder: Path) -> None:
    [path] = folder.glob("*.onnx")
    path.write_bytes(b"no model")
    facts = json.loads((folder / "model.json").read_text())
    facts["artifact"]["sha256"] = hashlib.sha256(b"no model").hexdigest()
    (folder / "model.json").write_text(json.dumps(facts))
    sign_again(folder)


def other_logits(folder: Path) -> None:
    path = folder / "self_test/logits.npy"
    logits = np.load(path)
    logits[[3, 7], 2] += 0.03 * (1 + np.abs(logits[[3, 7]]).max())
    np.save(path, logits)
    sign_again(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_artifact, r"cnn\S+\.onnx was changed: its SHA-256 is \w{64}, shipped was \w{64}"),
        (another_class_list, r"model\.json was changed: its SHA-256 is "),
        (no_artifact, r".*No such file or directory: .*\.onnx"),
        (broken_artifact, r"artifact cnn\S+\.onnx \(onnxruntime int8\) cannot be loaded: "),
        (other_logits, r"self-test failed at 03\.png: the logit of third/odd is \S+, stored is "),
    ],
)
def test_a_folder_that_was_changed_fails_with_one_line(changed, device, change, message, tmp_path):
    change(changed)
    told = run(device, changed / "predict.py", "--self-test", cwd=tmp_path)
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (1, "", 1)
    assert re.match(message, told.stderr)
    with pytest.raises(ship.ShipError, match=r"predict\.py --self-test: "):
        ship.self_tested(changed)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("predict.py", r"cannot read the image .*predict\.py: cannot identify image file"),
        ("none.png", r"cannot read the image none\.png: .*No such file or directory"),
    ],
)
def test_what_is_no_picture_is_named_in_one_line(folder, device, picture, message):
    told = run(device, "predict.py", picture, cwd=folder)
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (1, "", 1)
    assert re.match(message, told.stderr)


def test_a_picture_of_another_size_is_refused_where_nothing_scales(changed, device, tmp_path):
    path = changed / "model.json"
    path.write_text(path.read_text().replace('"image_size": 28', '"image_size": null'))
    sign_again(changed)
    Image.new("L", (28, 30)).save(tmp_path / "tall.png")
    told = run(device, changed / "predict.py", "tall.png", cwd=tmp_path)
    assert told.returncode == 1
    assert "takes float32 (1, 1, 28, 28), got float32 (1, 1, 30, 28)\n" in told.stderr


@pytest.mark.parametrize("there", [("numpy", "pillow"), ("numpy",), ()])
def test_a_missing_package_is_named_in_one_line(folder, there, tmp_path):
    missing = {2: "onnxruntime", 1: "PIL", 0: "numpy"}[len(there)]
    python = bare_python(tmp_path / "device", *there)
    told = run(python, folder / "predict.py", "--self-test", cwd=tmp_path)
    expected = f"{missing} is not installed: python -m pip install -r requirements.txt\n"
    assert (told.returncode, told.stdout, told.stderr) == (1, "", expected)


def test_an_optional_runtime_that_is_missing_is_named_alike(images, tmp_path):
    shipped = written(files_of(artifact_of("openvino", "fp32"), images), tmp_path / "ship")
    python = bare_python(tmp_path / "device", "numpy", "pillow")
    told = run(python, shipped / "predict.py", "--self-test", cwd=tmp_path)
    expected = "openvino is not installed: python -m pip install -r requirements.txt\n"
    assert (told.returncode, told.stderr) == (1, expected)


PREPARED = """
import json, sys
from pathlib import Path
import numpy as np
import predict
model, prepared = predict.Model(), []
for picture, how in json.loads(sys.argv[1]):
    model.facts["preprocessing"] = how
    prepared.append(model.images(Path(picture)))
np.savez(sys.argv[2], *prepared)
"""


@pytest.fixture(scope="module")
def odd_pictures(tmp_path_factory) -> list[Path]:
    """Grey, colour, 16-bit grey, turned by Exif, with a palette, transparent, compressed."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (41, 30, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (31, 47), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(root / "colour.png")
    colour.convert("L").save(root / "grey.png")
    deep.save(root / "deep.png")
    deep.save(root / "deep.tif")
    colour.save(root / "turned.jpg", exif=exif)
    colour.quantize(9).save(root / "palette.png")
    colour.convert("RGBA").save(root / "transparent.png")
    return sorted(root.iterdir())


NUMBERS = [
    {"channels": 1, "mean": 0.1307, "std": 0.3081},
    {"channels": 3},
    {"channels": 3, "mean": "imagenet", "std": "imagenet"},
]


def test_pictures_are_prepared_bit_for_bit_as_the_study_does(
    folder, device, odd_pictures, tmp_path
):
    cases, expected = [], []
    for picture, resize, filtered, own in product(odd_pictures, RESIZES, INTERPOLATIONS, NUMBERS):
        how = Preprocessing(image_size=24, resize=resize, interpolation=filtered, **own)
        pixels = torch.from_numpy(read_picture(picture, how)[0].copy())
        split = Split(pixels[None], torch.tensor([0]), mean=how.mean, std=how.std)
        cases.append((str(picture), asdict(how) | conversion(split)))
        expected.append(split.take(1).numpy())
    done = run(device, "-B", "-c", PREPARED, json.dumps(cases), tmp_path / "p.npz", cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "p.npz") as found:
        alike = [np.array_equal(found[f"arr_{i}"], own) for i, own in enumerate(expected)]
    assert len(alike) == 7 * 2 * 3 * 3
    assert all(alike)


@pytest.mark.slow
def test_the_requirements_are_installed_by_pip(folder, tmp_path):
    python = tmp_path / "device/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "device")], check=True)
    install = ["-m", "pip", "install", "--quiet", "-r", folder / "requirements.txt"]
    assert run(python, *install, cwd=tmp_path).returncode == 0
    tested = run(python, folder / "predict.py", "--self-test", cwd=tmp_path)
    assert tested.stdout.startswith("self-test passed"), tested.stderr
