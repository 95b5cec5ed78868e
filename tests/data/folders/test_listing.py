"""Files of an image folder: ImageFolder's order, links, pipes, and the index of their contents."""

import os
from pathlib import Path

import pytest

from edgeopt.data.folders.listing import (
    SUFFIXES,
    class_folders,
    known_contents,
    list_pictures,
    write_index,
)
from edgeopt.system.torchvision import datasets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = ("a/2.png", "a/10.png", "a/sub/1.png", "a/sub-x/1.JPG", "a.b/1.png", "a/sub/deep/0.bmp")
    for name in names:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "root"


def names_of(root: Path) -> list[str]:
    return [picture.name for picture in list_pictures(root, root=root)[0]]


def test_suffixes_are_those_of_torchvision():
    assert SUFFIXES == datasets.folder.IMG_EXTENSIONS


def test_list_pictures_has_the_order_of_imagefolder(root):
    theirs = datasets.ImageFolder(root)
    pictures, left_out = list_pictures(root, root=root)
    assert [str(picture.path) for picture in pictures] == [path for path, _ in theirs.samples]
    assert class_folders(root) == theirs.classes == ["a", "a.b"]
    assert [theirs.class_to_idx[p.class_name] for p in pictures] == theirs.targets
    assert left_out == []


def test_list_pictures_follows_links_and_cuts_circles(root):
    (root / "a" / "up").symlink_to(root / "a")
    (root / "a" / "sub" / "up").symlink_to(root / "a")
    (root / "a" / "linked.png").symlink_to(root / "a.b" / "1.png")
    found = names_of(root)
    assert "a/linked.png" in found
    assert len(found) == 7


def test_list_pictures_leaves_out_what_must_not_be_opened(root):
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "gone.png").symlink_to(root / "nowhere")
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    (root / "a" / ".hidden.png").write_bytes(b"x")
    (root / "a" / "notes.gif").write_bytes(b"x")
    (root / ".cache").mkdir()
    pictures, left_out = list_pictures(root, root=root)
    assert len(pictures) == 6
    others = ["a/.hidden.png", "a/gone.png", "a/notes.gif", "a/pipe.png", "a/self.png"]
    assert left_out == [".cache", *others]


def test_known_contents_reads_only_what_changed(root, tmp_path, monkeypatch):
    index = tmp_path / "index.txt"
    pictures, _ = list_pictures(root, root=root)
    assert known_contents(index, pictures) == {}
    write_index(index, pictures, {picture.name: f"old {picture.name}" for picture in pictures})
    (root / "a" / "2.png").write_bytes(b"new")
    (root / "a" / "3.png").write_bytes(b"new")
    monkeypatch.setattr(
        "edgeopt.data.folders.listing.file_sha256", lambda path: f"read {path.name}"
    )
    found = known_contents(index, list_pictures(root, root=root)[0])
    assert found.pop("a/2.png") == "read 2.png"
    assert found.pop("a/3.png") == "read 3.png"
    assert len(found) == 5
    assert known_contents(index, list_pictures(root, root=root)[0])["a/3.png"] == "read 3.png"
    monkeypatch.delattr("edgeopt.data.folders.listing.file_sha256")
    assert known_contents(index, list_pictures(root, root=root)[0])["a/2.png"] == "read 2.png"
    assert all(content == f"old {name}" for name, content in found.items())


def test_known_contents_does_not_trust_a_broken_index(root, tmp_path, caplog):
    index = tmp_path / "index.txt"
    pictures, _ = list_pictures(root, root=root)
    write_index(index, pictures, {picture.name: "x" for picture in pictures})
    index.write_bytes(index.read_bytes().replace(b'"x"', b'"y"', 1))
    assert known_contents(index, pictures) == {}
    assert "index.txt is broken; every image is read again" in caplog.text


def test_list_pictures_takes_names_that_are_not_utf8(root, tmp_path):
    raw = os.fsencode(root / "a") + b"/\xff.png"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    pictures, _ = list_pictures(root, root=root)
    index = tmp_path / "index.txt"
    write_index(index, pictures, {picture.name: "x" for picture in pictures})
    assert known_contents(index, pictures) == {picture.name: "x" for picture in pictures}
