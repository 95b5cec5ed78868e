"""Backbones: trained once and kept, pruned, and mended where int8 falls."""

import copy
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgeopt import __version__
from edgeopt.data import Split, Splits
from edgeopt.files import write_atomically
from edgeopt.model import build_model, dump_weights, load_weights, set_deterministic
from edgeopt.probing import last_layer, run_named
from edgeopt.pruning import prune_to_macs
from edgeopt.recipes import Schedule, reinitialised
from edgeopt.schema import INT8_PRECISIONS
from edgeopt.training import fit

# torchvision's mobile networks average their BatchNorm statistics with a momentum of 0.01, which
# takes more steps to settle than a short training has: they would be served half initialised.
NORM_MOMENTUM = 0.1
# Its EfficientNets begin with logits in the tens, which a short training spends epochs to undo.
HEAD_STD = 0.01
_PROBE = 512  # pixels: many times any stride
_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)

Pool = Executor | None


class ByValue(dict):
    """Networks that go to another process as bytes.

    Shared memory would take a file descriptor for each of a backbone's hundreds of tensors.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (pickle.dumps(dict(self)),)


def _from_bytes(content: bytes) -> dict[Any, nn.Module]:
    # pickle would import torchvision, which may not load by itself
    import edgeopt._torchvision  # noqa: F401

    return pickle.loads(content)


@dataclass(frozen=True)
class Workshop:
    """Where and how the backbones of a study are trained.

    ``load`` makes the data and is picklable: each worker calls it, since the images are too many
    to send. ``folder`` keeps trained weights under a digest of all that decides them. ``weights``
    is what training starts from: torchvision's own (``torchvision``), a local state dict, or a
    folder with one per backbone, called ``<name>.pt``; random from the seed when omitted.
    """

    load: Callable[[], Splits]
    schedule: Schedule
    folder: str | Path
    weights: str | None = None


def train_backbones(
    names: Sequence[str], workshop: Workshop, *, seeds: Iterable[int], executor: Pool = None
) -> dict[tuple[str, int], nn.Module]:
    """Train every backbone per seed, or load what the same training left; by (name, seed).

    Raises
    ------
    ValueError
        When a name is unknown, or the images are smaller than a backbone's stride.
    OSError
        When the first weights are not there, or torchvision's cannot be downloaded.
    """
    jobs = [(name, seed) for seed in seeds for name in names]
    return _gathered(partial(_train, workshop), jobs, executor)


def prune_backbone(
    backbone: tuple[str, int],
    model: nn.Module,
    workshop: Workshop,
    *,
    macs_ratio: float,
    criteria: Sequence[str],
    executor: Pool = None,
) -> dict[tuple[str, str], nn.Module]:
    """Prune a trained backbone (name, seed) to ``macs_ratio`` of its MACs by every criterion.

    Returns networks by (recipe, criterion), all with the same epochs behind them: ``baseline``, the
    unpruned one trained on, ``fine-tuned`` for each criterion, and ``scratch``, the first one's
    architecture trained from new weights.
    """
    jobs = [
        ("baseline", "none"),
        ("scratch", criteria[0]),
        *(("fine-tuned", criterion) for criterion in criteria),
    ]
    task = partial(_prune, workshop, backbone, ByValue({backbone: model}), macs_ratio)
    return _gathered(task, jobs, executor)


def int8_cost(table: pd.DataFrame) -> pd.DataFrame:
    """Set every int8 candidate beside the fp32 one of the same backbone and runtime.

    Columns: ``candidate, model, runtime, precision``; the changes ``accuracy_change`` and
    ``macro_f1_change``; fp32 over int8 as ``file_ratio`` and, once timed, ``speedup``.
    """
    keys, ratios = ["model", "runtime"], {"file_ratio": "artifact_bytes"}
    if "latency_p50_ms" in table:
        ratios["speedup"] = "latency_p50_ms"
    measures = ["accuracy", "macro_f1", *ratios.values()]
    fp32 = table[table["precision"] == "fp32"].set_index(keys)[measures]
    int8 = table[table["precision"].isin(INT8_PRECISIONS)]
    parent = int8[keys].join(fp32, on=keys)
    changes = (int8[measures[:2]] - parent[measures[:2]]).add_suffix("_change")
    quotients = {name: parent[column] / int8[column] for name, column in ratios.items()}
    return int8[["candidate", *keys, "precision"]].join(changes).assign(**quotients)


def markdown_table(table: pd.DataFrame) -> str:
    """Write a table as Markdown, numbers with four digits."""
    head, *rows = table.to_csv(sep="|", index=False, float_format="%.4g").splitlines()
    return "\n".join(f"|{line}|" for line in (head, "|".join(["---"] * table.shape[1]), *rows))


def start_backbone(
    name: str, splits: Splits, *, weights: str | None = None, seed: int = 0
) -> nn.Module:
    """Build a backbone for these images and classes with its first weights.

    See :class:`Workshop` for ``weights`` and :func:`train_backbones` for what it raises.
    """
    set_deterministic(seed)
    classes, source = len(splits.class_names), _source(weights, name=name)
    try:
        model = build_model(name, num_classes=classes, weights=source)
    except URLError as error:
        raise OSError(
            f"torchvision's weights of {name} cannot be downloaded ({error.reason}); allowed: "
            "the path of a local state dict, or none"
        ) from error
    example = splits.train.images[:1]
    _require_pixels(model, example, name=name)
    if weights is None:
        nn.init.normal_(last_layer(model, example).weight, std=HEAD_STD)
    return model


def _train(workshop: Workshop, job: tuple[str, int]) -> ByValue:
    name, seed = job
    splits, epochs = workshop.load(), workshop.schedule.epochs
    model = start_backbone(name, splits, weights=workshop.weights, seed=seed)
    return ByValue({job: _fit_once(model, splits.train, workshop, _stem(*job), epochs, seed)})


def _prune(
    workshop: Workshop,
    backbone: tuple[str, int],
    networks: ByValue,
    macs_ratio: float,
    job: tuple[str, str],
) -> ByValue:
    (recipe, criterion), (_, seed) = job, backbone
    train, epochs = workshop.load().train, workshop.schedule.finetune_epochs
    loader = train.loader(workshop.schedule.batch_size, shuffle=True, seed=seed)
    pruned = networks[backbone]
    if recipe != "baseline":
        options = {"criterion": criterion, "example_input": train.images[:1], "seed": seed}
        pruned = prune_to_macs(pruned, macs_ratio, loader=loader, **options)
    if recipe == "scratch":
        pruned = reinitialised(pruned, seed=seed)
        epochs += workshop.schedule.epochs
    stem = f"{_stem(*backbone)}-{recipe}-{criterion}"
    return ByValue({job: _fit_once(pruned, train, workshop, stem, epochs, seed)})


def _stem(name: str, seed: int) -> str:
    return f"{name.replace(':', '-')}-seed{seed}"


def _fit_once(
    model: nn.Module, train: Split, workshop: Workshop, stem: str, epochs: int, seed: int
) -> nn.Module:
    """Train, or load what the very same training left.

    A last batch that is not full is left out: an epoch would end on the statistics of a few images.
    """
    rate, batch = workshop.schedule.learning_rate, workshop.schedule.batch_size
    count = len(train) - len(train) % batch or len(train)
    train = Split(train.images[:count], train.labels[:count])
    network = repr(model) + _own_source(type(model))
    facts = (network, epochs, rate, batch, seed, NORM_MOMENTUM, torch.__version__, __version__)
    path = Path(workshop.folder, f"{stem}-{_digest(model, train, facts=facts)}.pt")
    if not path.is_file():
        set_deterministic(seed)
        loader = train.loader(batch, shuffle=True, seed=seed)
        options = {"epochs": epochs, "learning_rate": rate, "cosine": True, "progress": False}
        fitted = fit(_quick_to_settle(model), loader, **options).model
        write_atomically(path, dump_weights(fitted))
    return load_weights(copy.deepcopy(model), path).eval()


def _own_source(network: type[nn.Module]) -> str:
    """Source of a user's network, of whose ``forward`` its ``repr`` says nothing."""
    library = network.__module__.partition(".")[0] in ("torch", "torchvision")
    return "" if library else inspect.getsource(network)


def _quick_to_settle(model: nn.Module) -> nn.Module:
    quick = copy.deepcopy(model)
    for module in quick.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = NORM_MOMENTUM
    return quick


def _digest(model: nn.Module, train: Split, *, facts: tuple[Any, ...]) -> str:
    """Sixteen hex digits over all that decides the trained weights."""
    seen = hashlib.sha256(repr(facts).encode())
    for tensor in (*model.state_dict().values(), train.images, train.labels):
        seen.update(tensor.contiguous().numpy())
    return seen.hexdigest()[:16]


def _gathered(
    task: Callable[[Any], ByValue], jobs: Sequence[Any], executor: Pool
) -> dict[Any, nn.Module]:
    results = (executor.map if executor else map)(task, jobs)
    networks: dict[Any, nn.Module] = {}
    for found in tqdm(results, desc="trainings", total=len(jobs), disable=None):
        networks |= found
    return networks


def _source(weights: str | None, *, name: str) -> str | None:
    """Tell where a backbone's first weights are: nowhere, at torchvision, or in a file."""
    if weights is None or (weights == "torchvision" and ":" not in name):
        return weights
    path = Path(weights)
    path = path / f"{name.replace(':', '-')}.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no weights of {name} at {path}; allowed: a local state dict")
    return str(path)


def _require_pixels(model: nn.Module, example: Tensor, *, name: str) -> None:
    stride, side = _total_stride(model, channels=example.shape[1]), min(example.shape[-2:])
    if side < stride:
        raise ValueError(
            f"images of {side} pixels are smaller than the stride of {name}, {stride}; "
            f"allowed: image_size {stride} or more"
        )
    run_named(model.eval(), example)


def _total_stride(model: nn.Module, *, channels: int) -> int:
    """Pixels of the image's side that one step in the smallest strided map stands for."""
    sides = [_PROBE]
    probe = copy.deepcopy(model).to("meta").eval()
    for module in probe.modules():
        if isinstance(module, _STRIDED) and module.stride not in (1, (1, 1)):
            module.register_forward_hook(lambda _, __, out: sides.append(min(out.shape[-2:])))
    with suppress(Exception):  # a head for one image size fails, after all strided maps were made
        probe(torch.empty(1, channels, _PROBE, _PROBE, device="meta"))
    return _PROBE // min(sides)
