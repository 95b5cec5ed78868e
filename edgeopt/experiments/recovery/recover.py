"""Recovery of int8 accuracy on any runtime: remedies until the accuracy is back."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.experiments.candidates.candidate import Candidate
from edgeopt.experiments.recovery.attempts import (
    QUALITIES,
    Attempt,
    Judge,
    attempts_table,
    latencies,
    most_accurate,
)
from edgeopt.experiments.recovery.remedies import (
    Plan,
    Progress,
    Remedy,
    Rewrites,
    first_remedies,
    later_remedies,
)
from edgeopt.runtimes import (
    ExportError,
    runtime_named,
)
from edgeopt.system import Int8Scheme, int8_scheme

logger = logging.getLogger(__name__)

PARENT = "none (fp32)"


@dataclass(frozen=True, eq=False)
class Recovery:
    """What :func:`recover_int8` found.

    ``selected`` is the first remedy inside the budget, int8 before ``int8-mixed``, or the most
    accurate one when ``reached`` is false; ``attempts`` has one row per remedy.
    """

    selected: Attempt
    reached: bool
    attempts: pd.DataFrame


def recover_int8(
    model: nn.Module,
    *,
    calibration: Iterable[tuple[Tensor, Tensor]],
    validation: Split,
    max_drop: float,
    folder: str | Path,
    runtime: str,
    float_layers: Sequence[int] = (1, 2, 4, 8),
    train_quantized: Callable[[nn.Module], nn.Module] | None = None,
    rewrites: Rewrites | None = None,
    scheme: Int8Scheme | None = None,
    exhaustive: bool = False,
    prepared: Mapping[str, Candidate | None] | None = None,
    threads: int = 1,
    rounds: int = 10,
    calls_per_round: int = 20,
) -> Recovery:
    """Try remedies in order of cost until int8 is at most ``max_drop`` below fp32.

    Both accuracy and, as far as the images can tell, macro-F1 are.
    The order: int8 as it is; other calibration methods, and channel groups rescaled, that one of
    the two first to which the diagnosis points; bias correction, the noisiest layers left in float,
    quantization-aware training, dynamic quantization. From bias correction on, each starts from
    the most accurate plan found before it. Layers in float that make an ``int8-mixed`` are the
    last resort where ``train_quantized`` is given. Artifacts take one image; a remedy that falls
    far short on a few hundred calibration images is not scored on validation, and gets no file
    where the runtime's int8 can be simulated before one is written. Those that have files are timed
    together at the end, in interleaved rounds, unless ``rounds`` is 0.

    Parameters
    ----------
    calibration : iterable of (images, labels)
        Batches that set the ranges of int8.
    validation : Split
        On which accuracy is measured.
    folder : Path
        Where the artifacts are written.
    runtime : str
        Whose int8 is recovered.
    float_layers : sequence of int
        How many layers to leave in float, in the order tried.
    train_quantized : callable, optional
        fp32 model -> fp32 model that went through quantization-aware training.
    rewrites : Rewrites, optional
        What the remedies already made of the model for another runtime.
    scheme : Int8Scheme
        Integer types of static int8, those that suit the CPU that will run it; this machine's when
        omitted.
    exhaustive : bool
        Try every remedy, also after the budget is met.
    prepared : mapping, optional
        The fp32 of the same runtime and its int8 as it is, by remedy, scored on ``validation``.

    Returns
    -------
    Recovery
        The columns of its ``attempts``, whose first row is the fp32 parent: remedy, based_on (the
        earlier remedy that is kept under it, if any), accuracy, macro_f1, images (on how many they
        are), simulated (whether they are estimates, of int8 in torch), quality_drop (of accuracy
        or, if that fell more, macro-F1), latency_ms (mean), artifact_bytes, int8_mac_share,
        reached, error.

    Raises
    ------
    ValueError
        For a bad budget or calibration set.
    ExportError
        When not one remedy could be applied.
    """
    if isinstance(max_drop, bool) or not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is {max_drop!r}; allowed: [0, 1]")
    if rewrites is None:
        rewrites = Rewrites(model, calibration=calibration, train_quantized=train_quantized)
    judge = Judge(
        runtime=runtime_named(runtime),
        validation=validation,
        rewrites=rewrites,
        scheme=scheme or int8_scheme(),
        threads=threads,
        files=(Path(folder) / f"{number:02d}" for number in itertools.count()),
        max_drop=max_drop,
        known=prepared or {},
    )
    parent = judge.attempt(Remedy(PARENT, lambda: Plan(model, precision="fp32")))
    if parent.error:
        raise ExportError(f"the fp32 model cannot be served: {parent.error}")
    judge = replace(judge, fp32={name: getattr(parent, name) for name in QUALITIES})
    tried: list[Attempt] = []
    for remedy in _remedies(judge, tried, float_layers, exhaustive=exhaustive):
        tried.append(judge.attempt(remedy))
        last = tried[-1]
        told = " (simulated)" if last.simulated else ""
        logger.info("%s: accuracy %.4f%s %s", remedy.name, last.accuracy, told, last.error)
        if judge.suffices(tried[-1]) and not exhaustive:
            break
    selected = _with_file(judge, tried)
    every = [parent, *tried]
    latency = latencies(every, validation, threads, rounds, calls_per_round) if rounds else {}
    table = attempts_table(every, latency=latency, reached=judge.reached)
    return Recovery(selected, judge.reached(selected), table)


def _with_file(judge: Judge, tried: list[Attempt]) -> Attempt:
    """Select an attempt that has a file; the best of those that were only simulated gets one."""
    while (selected := judge.select(tried)).simulated:
        logger.info("%s was the best in simulations, and is written", selected.remedy.name)
        again = replace(selected.remedy, make=lambda plan=selected.plan: plan)
        made = tried[tried.index(selected)] = judge.attempt(again, simulate=False)
        if not made.error:
            return judge.select([attempt for attempt in tried if not attempt.simulated])
    return selected


def _remedies(
    judge: Judge, tried: Sequence[Attempt], float_layers: Sequence[int], *, exhaustive: bool
) -> Iterator[Remedy]:
    """Yield remedies in order of cost; ``tried`` fills up meanwhile, and later ones start there."""

    def best() -> tuple[str, Plan]:
        attempt = most_accurate(tried)
        return attempt.remedy.name, attempt.plan

    progress = Progress(
        best,
        reached=lambda: not exhaustive and any(map(judge.reached, tried)),
        mixed=lambda: tried[-1].mixed,
    )
    own = {"counts": float_layers, "weight_steps": judge.weight_steps}
    yield from first_remedies(judge.rewrites, runtime=judge.runtime)
    yield from later_remedies(judge.rewrites, progress, runtime=judge.runtime, **own)
