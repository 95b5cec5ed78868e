"""One sentence that reads a figure, from the numbers it draws: its caption and its alt text."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from edgeopt.runtimes import runtime_named
from edgeopt.schema import TIMES, known, signed
from edgeopt.search import LatencyMap, LayerMap


def training_history(history: pd.DataFrame, *, model: str) -> str:
    """Say where training and validation accuracy end."""
    ends = history.groupby("seed")[["train_accuracy", "val_accuracy"]].last().mean()
    return (
        f"{model} by epoch, one line per seed: it ends at {ends['train_accuracy']:.1%} on training "
        f"and {ends['val_accuracy']:.1%} on validation images."
    )


def confusion_matrix(table: pd.DataFrame, *, model: str) -> str:
    """Say which class is most often taken for which."""
    wrong = table.where(~np.eye(len(table), dtype=bool))
    true, most = wrong.max(axis=1).idxmax(), int(wrong.max(axis=None))
    pair = f"{true} is taken for {wrong.loc[true].idxmax()}"
    return f"{model}, most often {pair}: {most} of {int(table.loc[true].sum())} images."


def filter_norms(norms: pd.DataFrame, *, model: str) -> str:
    """Say in which layer the filters differ most."""
    spread = norms.groupby("layer")["l1_norm"].agg(lambda norm: norm.min() / norm.max())
    return (
        f"L1 norm of every filter of {model}, sorted, the lowest pruned first: in "
        f"{spread.idxmin()} the weakest has {spread.min():.0%} of the strongest's."
    )


def pruning_curves(accuracies: pd.DataFrame, *, model: str) -> str:
    """Say what is left at the highest level, by recipe."""
    deepest = accuracies["pruning_level"].max()
    rows = accuracies[accuracies["pruning_level"] == deepest]
    means = rows.groupby("recipe", sort=False)["accuracy"].mean()
    words = ", ".join(f"{recipe} {share:.1%}" for recipe, share in means.items())
    return f"{model} with {deepest:.0%} of its channels pruned: {words}."


def quantization(candidates: pd.DataFrame, *, model: str) -> str:
    """Say what int8 takes of the weights, and how often it answers as fp32 does."""
    int8 = candidates[candidates["precision"] == "int8"]
    if int8.empty:
        return f"Weights of {model} in each precision of each runtime."
    share = int8["weight_bytes"].max() / candidates["weight_bytes"].max()
    agree = f"answers {int8['agreement'].min():.1%} or more of the images as fp32 does"
    return f"{model}: int8 takes {share:.0%} of fp32's weights and {agree}."


def diagnosis_bars(diagnosis: pd.DataFrame, *, model: str) -> str:
    """Say what is left with the worst tensor alone in int8."""
    worst = diagnosis.iloc[0]
    return (
        f"Rounding noise of what each layer of the collapsed {model} writes, worst on top: with "
        f"{worst['layer']} alone in int8 {worst['accuracy_alone']:.1%} is left."
    )


def drift(samples: pd.DataFrame) -> str:
    """Say by how much the whole field moved in its slowest round."""
    rounds = samples.pivot_table("latency_ms", "candidate", "round", aggfunc="median")
    steps = rounds.div(rounds.median(axis=1), axis=0).median()
    return (
        "Median latency of each round over the candidate's own: the slowest round, "
        f"{steps.idxmax()}, took the median candidate {steps.max():.2f} times as long."
    )


def latency_distribution(sweep: pd.DataFrame) -> str:
    """Say which candidates are fastest and slowest."""
    order = sweep.set_index("candidate")["latency_p50_ms"]
    return (
        f"Every single call and its box per candidate, fastest on top: {order.idxmin()} takes "
        f"{order.min():.3g} ms, {order.idxmax()} {order.max():.3g} ms."
    )


def budgets(sweep: pd.DataFrame) -> str:
    """Say how many candidates fit the active budget."""
    fit = int(sweep["accepted"].eq(True).sum())
    return f"Weights against the budgets: {fit} of {len(sweep)} candidates fit the active one."


def energy_tiers(sweep: pd.DataFrame) -> str:
    """Say how far the two estimates of energy agree."""
    agree = sweep["energy_proxy_j"].corr(sweep["energy_model_j"], method="spearman")
    words = f", whose ranks correlate by {signed(agree, digits=2)} (Spearman)"
    return f"Two estimates of energy{words if known(agree) else ''}."


def precision_ratios(ratios: pd.DataFrame) -> str:
    """Name the precisions that are slower than fp32 in the same runtime."""
    slow = ratios[ratios["latency_ratio"].round(2) > 1]
    words = [
        f"{runtime_named(row.runtime).title} {row.precision} ({row.latency_ratio:.2f} times)"
        for row in slow.sort_values("latency_ratio", ascending=False).itertuples()
    ]
    return f"Slower than fp32 in the same runtime: {', '.join(words) or 'none'}."


def per_class_change(change: pd.DataFrame, *, before: str, after: str) -> str:
    """Name the class that lost most."""
    lost = (change["before"] - change["after"]).set_axis(change["class_name"])
    worst = "no class loses any"
    if lost.max() > 0:
        worst = f"{lost.idxmax()} loses most, {100 * lost.max():.1f} points"
    return f"Recall of each class, before ({before}) and after ({after}): {worst}."


def layer_breakdown(layers: pd.DataFrame, *, model: str) -> str:
    """Name the layer whose share of the time is farthest from its share of the MACs."""
    gap = (layers["measured_share"] - layers["macs"] / layers["macs"].sum()).abs()
    return (
        f"Share of MACs beside share of time per layer of {model}, in eager torch: they differ "
        f"most in {layers.loc[gap.idxmax(), 'layer']}, by {100 * gap.max():.0f} points."
    )


def roofline(summary: pd.DataFrame) -> str:
    """Name the candidate that comes nearest to a ceiling."""
    use = summary[["compute_utilization", "bandwidth_utilization"]].max(axis=1)
    name = summary.loc[use.idxmax(), "candidate"]
    return f"Candidates under this machine's ceilings: {name} comes nearest, at {use.max():.0%}."


def scaling(table: pd.DataFrame) -> str:
    """Say what more threads and batches gain, at best."""
    measured = table.dropna(subset="ms_per_image")
    alone = measured[(measured["threads"] == 1) & (measured["batch_size"] == 1)]
    base = measured["candidate"].map(alone.set_index("candidate")["ms_per_image"])
    gains = base / measured["ms_per_image"]
    words = [
        f"{what} make {measured['candidate'][own.idxmax()]} {own.max():.2f} times as fast an image"
        for what, own in (
            ("more threads", gains[measured["threads"] > 1].dropna()),
            ("batches", gains[measured["batch_size"] > 1].dropna()),
        )
        if len(own)
    ]
    return (
        f"Latency per image by threads and batch. At best, {'; '.join(words) or 'none was tried'}."
    )


def latency_map(known: LatencyMap | LayerMap, *, model: str) -> str:
    """Read the figure of a map, whichever it is."""
    if isinstance(known, LatencyMap):
        return latency_steps(known.table, known.groups, model=model)
    return layer_sums(known.checked, model=model)


def latency_steps(table: pd.DataFrame, groups: Sequence[str], *, model: str) -> str:
    """Say where fewer channels take longer."""
    whole = table.loc[table["latency_ratio"] == 1].iloc[0]
    ran = table.dropna(subset="latency_ratio")
    slow = ran.loc[ran["latency_ratio"].idxmax()]
    fast = ran.loc[ran["latency_ratio"].idxmin()]
    by = f" {TIMES} "
    shown = [by.join(str(int(row[name])) for name in groups) for row in (whole, slow, fast)]
    text = (
        f"Latency of {model} by its channels ({', '.join(groups)}): {shown[2]} takes "
        f"{fast['latency_ratio']:.0%} of the unpruned network's ({shown[0]})"
    )
    if slow["latency_ratio_low"] > 1:
        text += f", and {shown[1]}, which is smaller, {slow['latency_ratio']:.0%}"
    return f"{text}."


def layer_sums(checked: pd.DataFrame, *, model: str) -> str:
    """Say how far the sum of the layers is off."""
    own = checked.loc[~checked["fitted"], "relative_error"].abs()
    if own.empty:
        return f"{model}: its {len(checked)} networks set the prediction, which none checks."
    return (
        f"{model}: latency predicted from tables of its layers is off by {own.median():.1%} "
        f"(median of {own.count()} whole networks), at most {own.max():.0%}."
    )


def searched_frontier(sweep: pd.DataFrame, *, searched: Collection[str], gain: float) -> str:
    """Say what the search adds to the uniform levels."""
    found = sweep[sweep["candidate"].isin(searched)].dropna(subset="latency_p50_ms")
    if found.empty:
        return "Accuracy against latency of the uniform levels: the search found nothing beside."
    fast = found.loc[found["latency_p50_ms"].idxmin()]
    return (
        f"Accuracy against latency: what the search found ({len(found)}) over the uniform levels; "
        f"together they enlarge the hypervolume by {gain:.1%}. The fastest takes "
        f"{fast['latency_p50_ms']:.4g} ms at {fast['accuracy']:.1%}."
    )
