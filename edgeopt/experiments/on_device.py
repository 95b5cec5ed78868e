"""What candidates cost and answer on a device, and what another device's pick costs there."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from edgeopt.data import Split
from edgeopt.decision import Decision, decide
from edgeopt.devices import EMULATED, DeviceResults
from edgeopt.experiments.candidates.candidate import Candidate
from edgeopt.experiments.candidates.floor import FLOOR, with_call_floor
from edgeopt.experiments.sweep import Target, quality_table, with_energy
from edgeopt.metrics import (
    UNDISTURBED,
    latency_ratios,
    latency_statistics,
    resampled_quantiles,
)

TAU = ("tau", "tau_low", "tau_high")
COMPARISON = ["device", "pick", "first_pick", "regret", "regret_low", "regret_high", *TAU]
ALIKE, APART = "equal bit for bit", "not equal"


def host_answers(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Tell what candidates of the first seed answered where they were prepared: a row each.

    Columns: ``candidate, digest`` (SHA-256 of the float32 logits) and ``classes``, the answers to
    all images in their order, separated by spaces.
    """
    rows = [
        (
            own.name,
            hashlib.sha256(np.ascontiguousarray(own.logits, np.float32)).hexdigest(),
            " ".join(map(str, own.logits.argmax(1))),
        )
        for own in candidates
        if own.logits is not None and own.spec.seed == candidates[0].spec.seed
    ]
    return pd.DataFrame(rows, columns=["candidate", "digest", "classes"])


def device_tables(
    results: Mapping[str, DeviceResults], candidates: Sequence[Candidate], **options: Any
) -> dict[str, pd.DataFrame]:
    """Make the sweep's table of every device by its name; ``options`` as :func:`device_sweep`'s."""
    labels = next(iter(options["images"].values())).labels.numpy()
    quality = quality_table(candidates, labels=labels, target=options["target"])
    return {name: device_sweep(own, quality, **options) for name, own in results.items()}


def device_sweep(
    results: DeviceResults,
    sweep: pd.DataFrame,
    *,
    answers: pd.DataFrame,
    floors: pd.DataFrame,
    images: Mapping[str, Split],
    target: Target,
    batch_size: int,
) -> pd.DataFrame:
    """Put what one device measured into a sweep's table, in place of what was measured before.

    Parameters
    ----------
    sweep : DataFrame
        Of :func:`edgeopt.experiments.sweep.quality_table`, or of another device.
    answers : DataFrame
        Of :func:`host_answers`.
    floors : DataFrame
        :func:`edgeopt.experiments.candidate_table` of the smallest networks.

    Returns
    -------
    DataFrame
        With ``device``, latency and memory, the call's floor and, where the device scored the
        images, ``device_accuracy``, ``device_differs`` (images that it answers otherwise than the
        host) and ``device_logits``. The latencies of an emulated device are empty.
    """
    measured, labels = results.measured, next(iter(images.values())).labels.numpy()
    latency = latency_statistics(
        measured.samples, conditions=measured.conditions, batch_size=batch_size
    )
    here = _answered(results, answers, labels=labels)
    errors = sweep["candidate"].map(lambda name: results.errors.get(name, ""))
    table = sweep.assign(
        device=results.device,
        error=sweep["error"].astype(object).fillna("").mask(errors != "", errors),
        status=sweep["status"].mask(errors != "", "failed"),
    )
    for found in (latency.drop(columns="error"), results.memory, here):
        table = table.drop(columns=[n for n in found if n in table and n != "candidate"])
        table = table.merge(found, "left", "candidate")
    table = with_call_floor(table, floors, samples=measured.samples, images=images)
    table = with_energy(table, target=target, batch_size=batch_size)
    table["accepted"] &= table["status"] != "failed"
    return _without_latency(table) if results.facts["emulated"] else table


def _answered(results: DeviceResults, answers: pd.DataFrame, *, labels: np.ndarray) -> pd.DataFrame:
    """Compare the device's answers with the host's and with the labels [N]."""
    rows = []
    for own in answers[answers["candidate"].isin([*results.classes])].itertuples():
        classes, digest = results.classes[own.candidate], results.digests[own.candidate]
        differs = int((classes != np.array(own.classes.split(), int)).sum())
        alike = ALIKE if digest == own.digest else APART
        rows.append((own.candidate, float((classes == labels).mean()), differs, alike))
    columns = ["candidate", "device_accuracy", "device_differs", "device_logits"]
    return pd.DataFrame(rows, columns=columns)


def _without_latency(table: pd.DataFrame) -> pd.DataFrame:
    """Empty all that a clock told: an emulator's time is not the device's."""
    told = [n for n in table if n.startswith(("latency_", "throughput_", "call_"))]
    told += ["energy_proxy_j"]
    return table.assign(**dict.fromkeys(told, np.nan)).assign(latency_kind=EMULATED)


def order_agreement(
    first: pd.DataFrame, second: pd.DataFrame, *, seed: int = 0
) -> tuple[float, float, float]:
    """Kendall's tau of two devices' latency orders, and its bootstrap 95% interval.

    ``first`` and ``second`` are latency samples; floors and what only one has are left out. The
    order is that of the tenth percentiles: what else runs on a machine only ever adds time, so that
    the fast calls tell two candidates apart that medians do not (Chen and Revels, 2016,
    arXiv:1608.04295). Rounds are resampled, each device's by themselves. NaN with fewer than two
    candidates in both.
    """
    measured = [own.dropna(subset=["latency_ms"]) for own in (first, second)]
    fast = [own.groupby("candidate")["latency_ms"].quantile(UNDISTURBED) for own in measured]
    both = set(fast[0].index) & set(fast[1].index)
    names = [name for name in fast[0].index if name in both and not name.startswith(FLOOR)]
    if len(names) < 2:
        return np.nan, np.nan, np.nan
    drawn = [
        [resampled_quantiles(samples, quantile=UNDISTURBED, seed=seed + shift) for samples in rows]
        for shift, rows in enumerate(_of_each(own, names) for own in measured)
    ]
    taus = [kendalltau(a, b).statistic for a, b in zip(*map(np.transpose, drawn), strict=True)]
    tau = kendalltau(*(own.loc[names] for own in fast)).statistic
    return float(tau), *map(float, np.nanquantile(taus, [0.025, 0.975]))


def _of_each(samples: pd.DataFrame, names: Sequence[str]) -> list[pd.DataFrame]:
    own = dict(iter(samples.groupby("candidate")))
    return [own[name] for name in names]


def compare_devices(
    decisions: Mapping[str, Decision], samples: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Say what the first device's pick costs on each of the others: one row per other device.

    Columns: ``device, pick`` (its own), ``first_pick, regret, regret_low, regret_high`` (how much
    longer the first device's pick takes there than its own, with the 95% interval of the ratio in
    the same rounds) and ``tau, tau_low, tau_high`` of :func:`order_agreement`. NaN where there is
    no pick, or the pick failed there.
    """
    (first, chosen), *others = decisions.items()
    rows = [
        {
            "device": name,
            "pick": _name(decision),
            "first_pick": _name(chosen),
            **_regret(samples[name], best=_name(decision), taken=_name(chosen)),
            **dict(zip(TAU, order_agreement(samples[first], samples[name]), strict=True)),
        }
        for name, decision in others
    ]
    return pd.DataFrame(rows, columns=COMPARISON)


def decide_elsewhere(
    decision: Decision,
    tables: Mapping[str, pd.DataFrame],
    results: Mapping[str, DeviceResults],
    **rules: Any,
) -> pd.DataFrame:
    """Decide on every other device too, by the same ``rules``, and compare: a row each.

    ``decision`` is that of the first of ``results``, ``tables`` are those of the others. What
    comes back is :func:`compare_devices`.
    """
    samples = {name: result.measured.samples for name, result in results.items()}
    own = {name: decide(table, samples=samples[name], **rules) for name, table in tables.items()}
    return compare_devices({next(iter(results)): decision} | own, samples)


def _name(decision: Decision) -> str:
    return decision.pick["candidate"] if decision.pick else ""


def _regret(samples: pd.DataFrame, *, best: str, taken: str) -> dict[str, Any]:
    nothing = {"regret": np.nan, "regret_low": np.nan, "regret_high": np.nan}
    if not {best, taken} <= {*samples.dropna(subset=["latency_ms"])["candidate"]}:
        return nothing
    ratios = latency_ratios(samples, to=best).set_index("candidate")
    if taken not in ratios.index:
        return nothing
    ratio, low, high = ratios.loc[taken]
    return {"regret": ratio - 1, "regret_low": low - 1, "regret_high": high - 1}
