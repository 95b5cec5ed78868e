import numpy as np
import pytest

from edgeopt.reports.pages.card import (
    bound_names,
    decision_card,
    interval,
    made_of,
    on_test_images,
    points,
    role_table,
    times,
    warnings_box,
)
from tests.browser.synthetic import synthetic_sweep
from tests.reports.made_up import results_of

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
NASTY = "<img src=x onerror=alert(1)>"


def test_the_card_has_the_pick_its_numbers_their_intervals_and_the_reason(tmp_path):
    results = results_of(tmp_path)
    html = decision_card(results).data
    pick, baseline = (results.rows[role] for role in ("pick", "baseline"))
    assert f'<p class="pick">{pick["candidate"]}</p>' in html
    assert f"{pick['accuracy']:.1%}" in html
    assert f"95% interval {pick['accuracy_low']:.1%} to {pick['accuracy_high']:.1%}" in html
    assert results.decision["reason"] in html
    ratio = baseline["latency_p50_ms"] / pick["latency_p50_ms"]
    assert f"{ratio:.1f}{TIMES} faster than the baseline" in html
    # made up as 5.0 for PyTorch, 1.0 for ExecuTorch: the runtime alone is five times as fast
    assert f"{ratio / 5:.1f}{TIMES} faster than uncompressed ExecuTorch" in html


def test_the_card_without_a_pick_says_what_comes_nearest(tmp_path):
    results = results_of(tmp_path, synthetic_sweep().assign(accepted=False, active_budget_mb=1e-6))
    html = decision_card(results).data
    assert "No candidate can be recommended" in html
    assert "comes nearest" in html


def test_names_with_html_are_text(tmp_path):
    sweep = synthetic_sweep()
    sweep["candidate"] = sweep["candidate"].replace(
        results_of(tmp_path).rows["pick"]["candidate"], NASTY
    )
    results = results_of(tmp_path, sweep, busy=NASTY)
    assert NASTY not in decision_card(results).data + warnings_box(results).data
    assert "&lt;img src=x" in decision_card(results).data
    assert "&lt;img src=x" in warnings_box(results).data


def test_the_roles_stand_side_by_side_with_units(tmp_path):
    results = results_of(tmp_path)
    table = role_table(results).set_index("number")
    assert list(table) == ["Pick", "Baseline", "Runner-up", "Fastest uncompressed"]
    assert table.loc["Candidate", "Baseline"] == "small_cnn-p0-torch-fp32"
    assert table.loc["Validation accuracy", "Pick"] == f"{results.rows['pick']['accuracy']:.1%}"
    assert "Test accuracy" not in table.index  # was not measured


def against_pick(results, role, **changes):
    """Row of the comparison on test images: what ``role`` leads the pick by."""
    row = {
        "candidate": results.rows[role]["candidate"],
        "accuracy_difference": 0.005,
        "difference_low": -0.002,
        "difference_high": 0.012,
        "p_holm": 0.0421,
        "significant": False,
        "method": "exact McNemar test, Tango interval",
    }
    return row | changes


@pytest.mark.parametrize(
    ("significant", "words"), [(False, "no difference detected, "), (True, "")]
)
def test_the_pick_is_compared_with_the_baseline_on_test_images(tmp_path, significant, words):
    results = results_of(tmp_path, synthetic_sweep().assign(test_accuracy=0.8))
    assert on_test_images(results) == ["80.0% on test images, scored once"]
    results.decision["against_pick"] = [against_pick(results, "baseline", significant=significant)]
    assert on_test_images(results) == [
        f"80.0% on test images, scored once; {MINUS}0.50 points (95% interval {MINUS}1.20 points "
        f"to +0.20 points, {words}exact McNemar test, Tango interval, p = 0.042) against the "
        "baseline there"
    ]


@pytest.mark.parametrize(
    ("p_value", "words"), [(8e-8, "p < 0.001)"), (0.00099, "p < 0.001)"), (0.001, "p = 0.001)")]
)
def test_a_tiny_p_value_is_a_bound(tmp_path, p_value, words):
    results = results_of(tmp_path, synthetic_sweep().assign(test_accuracy=0.8))
    results.decision["against_pick"] = [against_pick(results, "baseline", p_holm=p_value)]
    assert words in on_test_images(results)[0]


@pytest.mark.parametrize(
    ("lead", "words"), [(0.0056, "better on them: +0.56"), (-0.0056, f"worse on them: {MINUS}0.56")]
)
def test_the_runner_ups_lead_is_named_only_when_significant(tmp_path, lead, words):
    results = results_of(tmp_path, synthetic_sweep().assign(test_accuracy=0.8))
    for significant in (True, False):
        row = against_pick(results, "runner_up", significant=significant, accuracy_difference=lead)
        results.decision["against_pick"] = [row]
        assert (
            f"The runner-up is {words} points" in " ".join(on_test_images(results))
        ) == significant


def test_points_say_the_change_its_interval_and_what_is_allowed():
    pick, baseline = {"accuracy": 0.87}, {"accuracy": 0.885}
    change = f"{MINUS}1.50 points of accuracy against the baseline on validation images"
    assert points(pick, baseline) == change
    assert points(pick, {}) == ""
    ends = {"accuracy_drop_low": 0.011, "accuracy_drop_high": 0.019}
    ends["accuracy_drop_confidence"] = 0.9
    between = f"{change}, paired 90% interval {MINUS}1.90 points to {MINUS}1.10 points"
    assert points(pick | ends, baseline) == between
    within = points(pick | ends | {"accuracy_within": 0.02}, baseline)
    assert within == f"{between}: within the 2.00 points that are allowed"


def test_times_says_which_way():
    def said(value, reference, name="latency_p50_ms"):
        return times({name: value}, {name: reference}, name)

    assert said(1.0, 6.64) == f"6.6{TIMES} faster than the baseline"
    assert said(3.0, 1.0) == f"3.0{TIMES} slower than the baseline"
    assert said(1.0, 2.0, "memory_mb") == f"2.0{TIMES} smaller than the baseline"
    assert said(1.01, 1.0) == "the same as the baseline"
    assert said(0.0, 1.0) == ""


def test_an_interval_is_only_named_where_there_is_one():
    row = {"accuracy_low": 0.8, "accuracy_high": 0.9}
    assert interval(row, "accuracy") == "95% interval 80.0% to 90.0%"
    assert interval({"accuracy_low": 0.8, "accuracy_high": np.nan}, "accuracy") == ""
    assert bound_names("latency_p50_ms") == ("latency_p50_low_ms", "latency_p50_high_ms")


def test_made_of_says_network_level_training_precision_and_runtime():
    row = {"model": "net", "runtime": "executorch", "precision": "int8", "pruning_level": 0.25}
    words = "net, 25.0% of the channels pruned, fine-tuned, int8, ExecuTorch"
    assert made_of(row | {"recipe": "fine-tuned"}) == words
    assert made_of({"precision": "int8"}) == "unpruned, int8"
