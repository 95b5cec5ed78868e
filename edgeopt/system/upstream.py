"""What the libraries underneath say without need, and how the optional ones are asked for."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from types import ModuleType

logger = logging.getLogger(__name__)

# Every entry names one deprecation that its library announces on each use and that edgeopt has
# confined to one module. Any other warning stays what the caller made of it.
KNOWN_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r"torch\.ao\.quantization is deprecated", DeprecationWarning),
    (r"Please use quant_min and quant_max to specify the range", UserWarning),
    (r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other", UserWarning),
    (r"`torch\.jit\.\w+` is deprecated", DeprecationWarning),
    (r"You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    (r"The feature will be removed\. Please remove usage", DeprecationWarning),
    (r"(read_text|open_text|read_binary) is deprecated", DeprecationWarning),
    # The scales of quantized layers, which are constants indeed.
    (r"Converting a tensor to a Python float might cause the trace", Warning),
    # torch.onnx, of sizes that a network computes with a step of two.
    (r"Constant folding - Only steps=1 can be constant folded", UserWarning),
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
)
# They report libraries for other hardware that do not load here, and each other's deprecations.
CHATTY_LOGGERS = (
    *("torchao", "torch.utils._pytree"),
    "torch.fx.experimental.symbolic_shapes",
)
# ONNX Runtime's quantizer, on the root logger: of every weight of a BatchNorm that no layer folds,
# and of the sizes that a network computes.
KNOWN_MESSAGES = ("is out-of-range for weight", "unsupported type to quantize for tensor")


class RuntimeUnavailable(RuntimeError):  # noqa: N818 - a state of the host, not a mistake
    """A runtime is not installed, or this host cannot do what was asked of it."""


@contextmanager
def known_noise_silenced() -> Iterator[None]:
    """Silence ``KNOWN_WARNINGS``, warnings by ``CHATTY_LOGGERS`` and ``KNOWN_MESSAGES`` inside."""
    levels = {name: logging.getLogger(name).level for name in CHATTY_LOGGERS}
    root = logging.getLogger()

    def is_news(record: logging.LogRecord) -> bool:
        return not any(known in record.getMessage() for known in KNOWN_MESSAGES)

    with warnings.catch_warnings():
        for message, category in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        root.addFilter(is_news)  # of this block alone: blocks may be nested
        try:
            yield
        finally:
            root.removeFilter(is_news)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def native_stderr_logged() -> Iterator[None]:
    """Send what native code writes to standard error inside the block to the debug log.

    Some of it goes to the descriptor, some through Python's stream, which a notebook replaces.
    """
    sys.stderr.flush()
    saved, words = os.dup(2), io.StringIO()
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            with redirect_stderr(words):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            captured.seek(0)
            native = captured.read().decode(errors="replace")
            logger.debug("native messages: %s%s", native, words.getvalue())


def import_extra(module: str) -> ModuleType:
    """Import a module of an optional dependency, or raise ``RuntimeUnavailable`` naming it.

    Logging stays as it was: ExecuTorch, imported, gives the root logger a handler.
    """
    handlers = logging.getLogger().handlers
    before = [*handlers]
    try:
        with known_noise_silenced():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise RuntimeUnavailable(
            f"{package} is not installed: pip install edgeopt[{package}]"
        ) from error
    finally:
        handlers[:] = before
