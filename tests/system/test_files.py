import pytest

from edgeopt.system.files import file_sha256, project_root, replacing, write_atomically


def test_digest_is_the_published_one_of_abc(tmp_path):
    path = write_atomically(tmp_path / "new" / "abc", b"abc")
    # FIPS 180-4's example
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    path = write_atomically(tmp_path / "kept", b"before")

    def fail():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "replace", refuse)
    with pytest.raises(PermissionError, match=rf"cannot write {tmp_path}/x: no permission in"):
        write_atomically(tmp_path / "x", b"")
    assert list(tmp_path.iterdir()) == []


def test_outside_of_a_project_the_error_says_what_to_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no pyproject.toml in .*EDGEOPT_REPORTS"):
        project_root(tmp_path)
