import logging
import os
import warnings

import pytest

from edgeopt.system.upstream import (
    RuntimeUnavailable,
    import_extra,
    known_noise_silenced,
    native_stderr_logged,
)


def test_only_the_named_warnings_are_silenced():
    with known_noise_silenced():
        warnings.warn("`torch.jit.trace` is deprecated. Please", DeprecationWarning, stacklevel=1)
        with pytest.raises(DeprecationWarning, match="another thing"):
            warnings.warn("another thing is deprecated", DeprecationWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="of another kind"):
            warnings.warn("`torch.jit.trace` is deprecated, of another kind", stacklevel=1)


def test_log_levels_come_back_after_a_failure():
    chatty = logging.getLogger("torchao")
    chatty.setLevel(logging.INFO)
    seen = []

    def fail() -> None:
        with known_noise_silenced():
            seen.append(chatty.level)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [logging.ERROR]
    assert chatty.level == logging.INFO


def test_native_messages_go_to_the_debug_log(caplog, capfd):
    with caplog.at_level(logging.DEBUG), native_stderr_logged():
        os.write(2, b"from the depths\n")
    os.write(2, b"afterwards\n")
    assert "from the depths" in caplog.text
    assert capfd.readouterr().err == "afterwards\n"


def test_a_missing_extra_says_how_to_install_it():
    with pytest.raises(
        RuntimeUnavailable,
        match=r"no_such_runtime is not installed: pip install edgeopt\[no_such_runtime\]",
    ):
        import_extra("no_such_runtime.core")


def test_a_missing_module_inside_an_installed_extra_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        import_extra("half_installed")


def test_an_import_that_sets_up_logging_leaves_it_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "sets_up_logging.py").write_text(
        "import logging; logging.getLogger().addHandler(1)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = [*logging.getLogger().handlers]
    import_extra("sets_up_logging")
    assert logging.getLogger().handlers == before


def test_a_known_message_of_the_root_logger_is_silenced_inside_and_others_are_not(caplog) -> None:
    known = "Axis 1 is out-of-range for weight 'norm.weight' with rank 1"
    with known_noise_silenced():
        logging.warning(known)
        logging.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    logging.warning(known)
    assert caplog.records[-1].getMessage() == known
