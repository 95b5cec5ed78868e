"""What a module of the user's own is made of."""

import importlib

import pytest

from edgeopt.system import source_digest


@pytest.mark.parametrize("changed", ["my_nets/blocks.py", "my_module.py", "my_layers.py"])
def test_a_source_digest_depends_on_what_a_network_s_module_imports(tmp_path, monkeypatch, changed):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets/__init__.py").write_text("from .blocks import Net")
    (tmp_path / "my_nets/blocks.py").write_text("1")
    (tmp_path / "my_module.py").write_text("import os, my_layers")
    (tmp_path / "my_layers.py").write_text("from my_module import *")
    (tmp_path / "unrelated.py").write_text("a b c")
    importlib.invalidate_caches()
    name = "my_nets.blocks" if "/" in changed else "my_module"
    before = source_digest(name)
    (tmp_path / "unrelated.py").write_text("d e f")
    assert source_digest(name) == before
    with (tmp_path / changed).open("a") as file:
        file.write("\n2")
    assert source_digest(name) != before
    assert source_digest("no_such_module") == ""
