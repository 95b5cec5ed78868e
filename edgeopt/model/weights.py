"""Weights of networks: found, read without running any code, fitted and written."""

import argparse
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.schema import file_stem

logger = logging.getLogger(__name__)

# Where checkpoints keep the state dict, and what wrappers of a network put before its names.
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Plain data that training scripts save beside the weights: options, and numbers such as the best
# accuracy. Source: https://docs.pytorch.org/docs/stable/notes/serialization.html
_PLAIN_DATA = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8")),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
]
_KEYS_SHOWN = 3


def weights_path(weights: str | Path, *, name: str) -> Path:
    """Find the weights of the network ``name``: the file itself, or ``<name>.pt`` in a folder.

    In the file's name ``:`` and ``.`` of a factory's name are written ``-``. Raises
    ``FileNotFoundError`` when there is no such file.
    """
    file_name = f"{file_stem(name)}.pt"
    path = Path(weights) / file_name if Path(weights).is_dir() else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights of {name} at {path}; allowed: a local state dict, or a folder that holds "
            f"{file_name}"
        )
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a file, plain or inside a checkpoint; no code in it is ever run.

    Raises
    ------
    ValueError
        When the file is damaged or something else, or holds more than plain data.
    """
    state = _state_dict(_unpickled(path), path=path)
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> nn.Module:
    """Put a state dict into ``model``, as the network's own floats, and return the network.

    ``source`` says in messages where the weights come from. A count of batches that older
    checkpoints lack stays the network's own.

    Raises
    ------
    ValueError
        When names, shapes or kinds of numbers are not the network's, or values are not finite.
    """
    own, misfit = model.state_dict(), f"the weights in {source} do not fit {type(model).__name__}"
    _require_names_and_shapes(own, state, misfit=misfit)
    for name, value in state.items():
        _require_numbers(value, own[name], name=name, source=source)
    _log_casts(own, state, source=source)
    try:
        model.load_state_dict({**own, **state})
    except (RuntimeError, TypeError) as error:  # a network may have its own way of loading
        raise ValueError(f"{misfit}: {error}") from error
    return model


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Read a file's weights into ``model`` and return it.

    See :func:`read_weights` and :func:`fit_weights` for what is refused.
    """
    return fit_weights(model, read_weights(path), source=str(path))


def dump_weights(model: nn.Module) -> bytes:
    """Return the state dict as the bytes of a file that :func:`load_weights` reads."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def _unpickled(path: str | Path) -> Any:
    """Read what ``torch.save`` wrote; its own messages advise to run the code in the file."""
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the reader stumbles over other files in its own ways
        found = re.search(r"(?:GLOBAL|global|type) ['\"]?([\w.]+\.\w+)", str(error))
        reason = f"it holds the Python object {found[1]}" if found else "torch cannot read it"
        if not Path(path).stat().st_size:
            reason = "it is empty"
    raise ValueError(
        f"the file {path} holds no weights: {reason}; allowed: tensors by name, as written by "
        "torch.save(model.state_dict(), path)"
    )


def _state_dict(content: Any, *, path: str | Path) -> dict[str, Tensor]:
    held = content
    while isinstance(held, Mapping):
        content = held
        inner = (held.get(key) for key in CHECKPOINT_KEYS)
        held = next((found for found in inner if isinstance(found, Mapping)), None)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"the file {path} holds {type(content).__name__}; allowed: a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"the file {path} holds {type(value).__name__} under {name!r}; allowed: tensors by "
                f"name, at the top or under one of {', '.join(CHECKPOINT_KEYS)}"
            )
    return dict(content)


def _require_names_and_shapes(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, misfit: str
) -> None:
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(value.shape)} instead of {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrongly shaped": shapes}
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_first(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{misfit}: {found}")


def _first(names: list[str]) -> str:
    rest = len(names) - _KEYS_SHOWN
    return ", ".join(names[:_KEYS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _require_numbers(value: Tensor, own: Tensor, *, name: str, source: str) -> None:
    if value.is_floating_point() != own.is_floating_point() or value.is_complex():
        raise ValueError(
            f"the weights in {source} hold {_kind(value)} under {name}; allowed: {_kind(own)}"
        )
    # A network's own constants, such as masks, may be infinite.
    bad = int((~value.isfinite() & own.isfinite()).sum())
    if bad:
        raise ValueError(
            f"the weights in {source} are not finite: {bad} of the {value.numel()} values of {name}"
        )


def _log_casts(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, source: str) -> None:
    casts = {
        (_kind(value), _kind(own[n])) for n, value in state.items() if value.is_floating_point()
    }
    for found, wanted in sorted(casts):
        if found != wanted:
            logger.warning("the weights in %s are %s; they are read as %s", source, found, wanted)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
