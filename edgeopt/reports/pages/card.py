"""The decision card: what to ship, its four numbers with their intervals, and what they beat."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from IPython.display import HTML

from edgeopt.reports.records.results import ROLES, UNCOMPRESSED, Results, images_as_seen
from edgeopt.runtimes import registered, runtime_named
from edgeopt.schema import COLUMNS, TIMES, known, quantity

PAGES = Path(__file__).parent / "assets"
HEADINGS = {**ROLES, UNCOMPRESSED: "Fastest uncompressed"}
LESS_OR_MORE = {"latency_p50_ms": ("faster", "slower"), "memory_mb": ("smaller", "larger")}
SIZES = ("memory_mb", "artifact_bytes")
MEASURES = ("accuracy", "latency_p50_ms", *SIZES)
MEMORY = (*SIZES, "peak_activation_bytes", "added_rss_bytes", "peak_rss_bytes")
ENERGY = ("energy_proxy_j", "energy_model_j", "energy_measured_j")
QUALITY = ("accuracy", "test_accuracy", "macro_f1", "agreement")
SPEED = ("latency_p50_ms", "latency_p95_ms", "call_floor_ms", "throughput_sps")
COMPARED = (*QUALITY, *SPEED, *MEMORY, *ENERGY, "int8_mac_share")


def render(template: str, **context: Any) -> HTML:
    """Render a template of a page; everything put into it is escaped."""
    return HTML(filled(template, **context))


def filled(template: str, **context: Any) -> str:
    """Fill a template of ours; what is put into one of HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=lambda name: ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def warnings_box(results: Results) -> HTML:
    """Show what a reader must know first; nothing when all is well."""
    return render("warnings.html.j2", problems=results.problems)


def decision_card(results: Results) -> HTML:
    """Show the pick: its file, its four numbers with their intervals, and what they beat."""
    pick = results.rows.get("pick")
    measures = [
        (COLUMNS[name].title, quantity(name, pick.get(name)), interval(pick, name))
        for name in MEASURES
        if pick
    ]
    return render(
        "card.html.j2",
        decision=results.decision,
        pick=pick,
        made_of=made_of(pick) if pick else "",
        seen=images_as_seen(pick.get("model"), results.manifest["data"]) if pick else "",
        artifact=results.artifact,
        measures=measures,
        lines=comparisons(results) if pick else [],
    )


def made_of(row: Mapping[str, Any]) -> str:
    """Say in words what a candidate is: network, level, training, precision and runtime."""
    level = row.get("pruning_level")
    pruned = f"{quantity('pruning_level', level)} of the channels pruned" if level else "unpruned"
    parts = [row.get("model"), pruned, row.get("recipe"), row.get("precision"), runtime(row)]
    return ", ".join(filter(known, parts))


def runtime(row: Mapping[str, Any]) -> str:
    """Title of a row's runtime; empty when it has none."""
    name = row.get("runtime")
    return runtime_named(name).title if name in registered() else ""


def role_table(results: Results) -> pd.DataFrame:
    """Set pick, baseline, runner-up and the fastest uncompressed side by side, numbers as text."""
    rows = {HEADINGS[role]: results.rows[role] for role in HEADINGS if role in results.rows}
    shown = [name for name in COMPARED if any(known(row.get(name)) for row in rows.values())]
    columns = {
        role: [row["candidate"], *(quantity(name, row.get(name)) for name in shown)]
        for role, row in rows.items()
    }
    return pd.DataFrame({"number": ["Candidate", *(COLUMNS[n].title for n in shown)], **columns})


def comparisons(results: Results) -> list[str]:
    """Set the pick's numbers against the baseline's and the uncompressed network's, in words."""
    pick, baseline = results.rows["pick"], results.rows.get("baseline", {})
    full = results.rows.get(UNCOMPRESSED, {})
    beaten = [
        times(pick, baseline, "latency_p50_ms"),
        times(pick, baseline, "memory_mb"),
        times(pick, full, "latency_p50_ms", than=f"uncompressed {runtime(full)}"),
    ]
    lines = [points(pick, baseline), *on_test_images(results), "; ".join(filter(None, beaten))]
    return [*filter(None, lines)]


def on_test_images(results: Results) -> list[str]:
    """Say how the pick did on the test images, beside the baseline and a better runner-up."""
    pick = results.rows["pick"]
    if not known(pick.get("test_accuracy")):
        return []
    words = f"{quantity('test_accuracy', pick['test_accuracy'])} on test images, scored once"
    lines = [", ".join(filter(None, (words, interval(pick, "test_accuracy"))))]
    others = {role: results.rows.get(role, {}).get("candidate") for role in ROLES}
    # Rows of decision.paired_comparison with the pick as parent.
    for row in results.decision.get("against_pick", []):
        if row["candidate"] == others["baseline"]:
            lines[0] += f"; {_difference(row, sign=-1)} against the baseline there"
        elif row["candidate"] == others["runner_up"] and row["significant"]:
            verb = "better" if row["accuracy_difference"] > 0 else "worse"
            lines.append(f"The runner-up is {verb} on them: {_difference(row, sign=1)}")
    return lines


def _difference(row: Mapping[str, Any], *, sign: int) -> str:
    """Write a paired difference with its interval first, then how and how surely it was found."""
    name = "accuracy_difference"
    ends = [row.get("difference_low"), row.get("difference_high")]
    p_value = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.2g}"
    details = [row.get("method", "paired test"), p_value]
    if not row["significant"]:
        details.insert(0, "no difference detected")
    if all(map(known, ends)):
        details.insert(0, f"95% {between(name, [sign * end for end in ends], signed=True)}")
    return f"{quantity(name, sign * row[name], signed=True)} ({', '.join(details)})"


def bound_names(name: str) -> tuple[str, str]:
    """Name the columns of a number's interval: ``x_low_ms, x_high_ms`` for ``x_ms``."""
    stem, unit = (name.removesuffix("_ms"), "_ms") if name.endswith("_ms") else (name, "")
    return f"{stem}_low{unit}", f"{stem}_high{unit}"


def interval(row: Mapping[str, Any], name: str) -> str:
    """Write the 95% interval of a number in words; empty when the row has none."""
    ends = [row.get(bound) for bound in bound_names(name)]
    return f"95% {between(name, ends)}" if all(map(known, ends)) else ""


def between(name: str, ends: Iterable[float], *, signed: bool = False) -> str:
    """Write the two ends of an interval of a number."""
    low, high = (quantity(name, end, signed=signed) for end in sorted(ends))
    return f"interval {low} to {high}"


def points(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Write the change of accuracy in percentage points, against the baseline."""
    value, reference = row.get("accuracy"), baseline.get("accuracy")
    if not (known(value) and known(reference)):
        return ""
    change = quantity("accuracy_change", value - reference, signed=True)
    text = f"{change} of accuracy against the baseline on validation images"
    ends = [row.get("accuracy_drop_low"), row.get("accuracy_drop_high")]
    if all(map(known, ends)):
        change = between("accuracy_change", [-end for end in ends], signed=True)
        text += f", paired {row['accuracy_drop_confidence']:.0%} {change}"
    if known(row.get("accuracy_within")):
        text += f": within the {quantity('accuracy_drop', row['accuracy_within'])} that are allowed"
    return text


def times(
    row: Mapping[str, Any], baseline: Mapping[str, Any], name: str, *, than: str = "the baseline"
) -> str:
    """Write the ratio of two costs in words, e.g. ``6.6x faster than the baseline``."""
    value, reference = row.get(name), baseline.get(name)
    if not (known(value) and known(reference)) or min(value, reference) <= 0:
        return ""
    ratio = f"{max(value, reference) / min(value, reference):.1f}"
    if ratio == "1.0":
        return f"the same as {than}"
    return f"{ratio}{TIMES} {LESS_OR_MORE[name][value > reference]} than {than}"
