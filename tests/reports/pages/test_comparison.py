import numpy as np
import pandas as pd
import pytest

from edgeopt.reports.pages.comparison import compare_picks, compare_runs, compare_tables
from edgeopt.reports.pages.conditions import changed_facts, obstacles
from edgeopt.reports.records import results
from edgeopt.study.folder import RunFolder

FAILED = (np.nan, np.nan)
LATENCY = "Latency, median"


def table(**rows):
    """Sweep of (accuracy, latency) pairs with intervals of 0.01 and 0.1 ms to each side."""
    return pd.DataFrame(
        {
            "candidate": name,
            "accuracy": accuracy,
            "accuracy_low": accuracy - 0.01,
            "accuracy_high": accuracy + 0.01,
            "latency_p50_ms": latency,
            "latency_p50_low_ms": latency - 0.1,
            "latency_p50_high_ms": latency + 0.1,
            "memory_mb": 1.0,
            "status": "failed" if np.isnan(accuracy) else "ok",
        }
        for name, (accuracy, latency) in rows.items()
    )


@pytest.mark.parametrize(
    ("second", "accuracy", "latency", "verdict"),
    [
        ((0.89, 1.15), "within noise", "within noise", "no change beyond noise"),
        ((0.87, 1.00), "worse", "within noise", "regression"),
        ((0.93, 1.00), "better", "within noise", "improvement"),
        ((0.90, 1.30), "within noise", "worse", "regression"),
        ((0.90, 0.70), "within noise", "better", "improvement"),
        ((0.87, 0.70), "worse", "better", "mixed"),
    ],
)
def test_a_change_counts_only_where_intervals_do_not_overlap(second, accuracy, latency, verdict):
    row = compare_tables(table(a=(0.90, 1.0)), table(a=second)).iloc[0]
    assert (row["accuracy_verdict"], row["latency_verdict"]) == (accuracy, latency)
    assert row["verdict"] == verdict


def test_a_latency_change_that_two_runs_of_the_same_code_show_is_noise():
    first, second = table(a=(0.9, 10.0), b=(0.9, 10.0)), table(a=(0.9, 9.6), b=(0.9, 10.6))
    judged = compare_tables(first, second).set_index("candidate")["latency_verdict"]
    # intervals of 0.1 to each side are apart; 4% is within the 5% of repeated runs, 6% is not
    assert judged.to_dict() == {"a": "within noise", "b": "worse"}


@pytest.mark.parametrize(
    ("second", "reference", "verdict"),
    [
        (0.80, 0.80, "within noise"),  # the machine was a fifth faster
        (0.80, 0.83, "within noise"),  # 4% are left
        (0.75, 1.00, "better"),
        (0.75, 0.70, "within noise"),  # slower than the machine became: nothing is told
        (1.00, 0.80, "within noise"),
        (1.30, 1.10, "worse"),
    ],
)
def test_a_latency_change_that_the_reference_kernel_shares_is_the_machine_s(
    second, reference, verdict
):
    before = table(a=(0.9, 1.0)).assign(latency_relative=10.0)
    after = table(a=(0.9, second)).assign(latency_relative=10 * second / reference)
    assert compare_tables(before, after)["latency_verdict"].item() == verdict


def test_touching_intervals_are_noise():
    first, second = table(a=(0.5, 1.0)), table(a=(0.5, 1.0))
    second[["accuracy_low", "accuracy_high"]] = [[0.4, first["accuracy_low"].iloc[0]]]
    assert compare_tables(first, second)["accuracy_verdict"].item() == "within noise"


def test_candidates_of_one_run_only_and_failures_are_said():
    first = table(gone=(0.9, 1.0), breaks=(0.9, 1.0), works=FAILED, never=FAILED)
    second = table(new=(0.9, 1.0), breaks=FAILED, works=(0.9, 1.0), never=FAILED)
    both = compare_tables(first, second).set_index("candidate")["verdict"]
    assert both.to_dict() == {
        "gone": "only in the first run",
        "new": "only in the second run",
        "breaks": "now fails",
        "works": "now works",
        "never": "fails in both",
    }


def test_the_regressions_come_first():
    first = table(a=(0.9, 1.0), b=(0.9, 1.0), c=(0.9, 1.0))
    second = table(a=(0.9, 1.0), b=(0.95, 1.0), c=(0.8, 1.0))
    assert compare_tables(first, second)["candidate"].to_list() == ["c", "b", "a"]


def test_accuracy_on_other_data_is_not_judged():
    row = compare_tables(table(a=(0.9, 1.0)), table(a=(0.5, 1.0)), accuracy=False).iloc[0]
    assert (row["accuracy_verdict"], row["verdict"]) == ("not judged", "not judged")


def test_nothing_judged_gives_no_verdict():
    first, second = table(a=(0.9, 1.0)), table(a=(0.5, 9.0))
    row = compare_tables(first, second, accuracy=False, latency=False).iloc[0]
    assert row["verdict"] == "not judged"


def test_without_median_intervals_the_standard_deviation_is_the_noise():
    def measured(mean, std):
        sweep = table(a=(0.9, mean)).drop(columns=["latency_p50_low_ms", "latency_p50_high_ms"])
        return sweep.assign(latency_ms=mean, latency_std_ms=std)

    noisy = compare_tables(measured(1.0, 0.2), measured(1.3, 0.2))
    steady = compare_tables(measured(1.0, 0.1), measured(1.3, 0.1))
    assert noisy["latency_verdict"].item() == "within noise"
    assert steady["latency_verdict"].item() == "worse"


def test_a_tripled_latency_of_few_rounds_is_not_no_change(tmp_path, monkeypatch):
    ends = dict.fromkeys(["latency_p50_low_ms", "latency_p50_high_ms"], np.nan)
    tables = [table(a=(0.9, latency)).assign(**ends) for latency in (1.0, 3.0)]
    row = compare_tables(*tables).iloc[0]
    assert (row["latency_verdict"], row["verdict"]) == ("no interval", "not judged")


def test_a_repeated_candidate_is_named():
    twice = pd.concat([table(a=(0.9, 1.0))] * 2)
    with pytest.raises(ValueError, match=r"second run: candidate\(s\) \['a'\] repeat"):
        compare_tables(table(a=(0.9, 1.0)), twice)


def test_only_what_differs_is_listed():
    first = {
        "data": {"name": "mnist", "checksum": "1"},
        "parameters": {"run": "a", "epochs": 3, "levels": [0.0, 0.5]},
        "git": {"commit": "c1"},
        "packages": {"torch": "2.13.0"},
        "host": {"cpu": "A"},
        "threads": 1,
    }
    second = first | {
        "parameters": {"run": "b", "epochs": 3, "levels": [0.0], "new": 1},
        "threads": 2,
    }
    assert changed_facts(first, second).to_dict("records") == [
        {"fact": "parameters: levels", "first": "0.0, 0.5", "second": "0.0"},
        {"fact": "parameters: new", "first": "\N{EN DASH}", "second": "1"},
        {"fact": "threads", "first": "1", "second": "2"},
    ]


def test_latencies_of_other_batch_sizes_are_not_judged(tmp_path, monkeypatch):
    facts = {"data": {}, "git": {}, "packages": {}, "host": {"cpu": "A"}, "threads": 1}
    sizes = {"one": 1, "eight": 8}
    for name, batch in sizes.items():
        run = RunFolder(tmp_path / name)
        run.write_table("sweep_results.csv", table(a=(0.9, float(batch))))
        run.write_table("conditions.csv", pd.DataFrame({"reference_ms": [1.0]}))
    monkeypatch.setattr(
        results,
        "read_manifest",
        lambda run: facts | {"parameters": {"benchmark_batch_size": sizes[run.name]}},
    )
    compared = compare_runs(*(RunFolder(tmp_path / name) for name in sizes))
    assert compared.warnings == [
        "The two runs differ in benchmark_batch_size: 1 and 8. "
        "Their latencies are shown but not judged."
    ]
    assert compared.candidates.iloc[0]["latency_verdict"] == "not judged"


EPYC = {"cpu": "AMD EPYC", "cpu_family": "25", "cpu_model": "1", "isa": ["avx2"]}


def compared_on(tmp_path, monkeypatch, *hosts, references=(1.0, 1.0), ceilings=(40.0, 40.0)):
    """Compare two runs of one candidate, the second 1.4 times slower, on the given hosts."""
    runs = [RunFolder(tmp_path / name) for name in ("first", "second")]
    for run, latency, reference, ceiling in zip(
        runs, (1.0, 1.4), references, ceilings, strict=True
    ):
        sweep = table(a=(0.9, latency)).assign(latency_relative=latency / reference)
        run.write_table("sweep_results.csv", sweep)
        run.write_table("conditions.csv", pd.DataFrame({"reference_ms": [reference]}))
        row = ("compute", "fp32", ceiling, "GMAC/s", "measured")
        names = ["name", "precision", "value", "unit", "kind"]
        run.write_table("ceilings.csv", pd.DataFrame([row], columns=names))
    manifests = {
        run.name: {"data": {}, "parameters": {}, "git": {}, "packages": {}, "threads": 1, "host": h}
        for run, h in zip(runs, hosts, strict=True)
    }
    monkeypatch.setattr(results, "read_manifest", lambda run: manifests[run.name])
    return compare_runs(*runs)


def test_compare_runs_judges_latency_on_the_same_host(tmp_path, monkeypatch):
    compared = compared_on(tmp_path, monkeypatch, EPYC, EPYC, ceilings=(40.0, 36.0))
    assert compared.candidates.iloc[0]["latency_verdict"] == "worse"
    assert compared.warnings == []
    assert "Latency, a (ms)" in compared.table("a", "b")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu_model": "17"}, "cpu model 1 and 17"),
        ({"cpu_family": "26"}, "cpu family 25 and 26"),
        ({"isa": ["avx2", "avx512_vnni"]}, "isa avx2 and avx2, avx512_vnni"),
        ({"l3_bytes": 32}, "l3 bytes not recorded and 32"),
    ],
)
def test_compare_runs_takes_one_name_of_two_designs_for_two_hosts(
    tmp_path, monkeypatch, changes, said
):
    compared = compared_on(tmp_path, monkeypatch, EPYC, EPYC | changes)
    assert compared.candidates.iloc[0]["latency_verdict"] == "not judged"
    assert f"measured on different hosts: {said}." in compared.warnings[0]
    assert "Latency, a (of the reference kernel)" in compared.table("a", "b")


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ({"ceilings": (40.0, 40.0 / 1.42)}, "compute ceiling fp32 (GMAC/s)"),
        ({"references": (1.0, 1.42)}, "reference kernel (ms)"),
    ],
)
def test_compare_runs_takes_two_speeds_for_two_hosts(tmp_path, monkeypatch, speeds, said):
    compared = compared_on(tmp_path, monkeypatch, EPYC, EPYC, **speeds)
    assert compared.candidates.iloc[0]["latency_verdict"] == "not judged"
    assert f"different hosts: {said}, as the runs measured it" in compared.warnings[0]


def test_compare_runs_shows_latencies_relative_to_the_reference_kernel(tmp_path, monkeypatch):
    compared = compared_on(tmp_path, monkeypatch, EPYC, EPYC, references=(1.0, 2.0))
    row = compared.candidates.iloc[0]
    assert (row["latency_relative_first"], row["latency_relative_second"]) == (1.0, 0.7)


def picked(tmp_path, name, **changes):
    """Results of a run whose pick is ``a``, with changes; without a pick when that is None."""
    row = table(a=(0.90, 1.0)).assign(artifact_bytes=1000).iloc[0].to_dict()
    pick = None if changes.get("pick", row) is None else row | changes
    decision = {"pick": pick, "baseline": row, "runner_up": None}
    return results.Results(RunFolder(tmp_path / name), {}, decision, None, ())


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({}, []),
        ({"accuracy": 0.87, "accuracy_low": 0.86, "accuracy_high": 0.88}, ["Validation accuracy"]),
        ({"latency_p50_ms": 2, "latency_p50_low_ms": 1.9, "latency_p50_high_ms": 2.1}, [LATENCY]),
        ({"artifact_bytes": 1009}, []),
        ({"artifact_bytes": 1011}, ["Artifact on disk"]),
        ({"memory_mb": 0.5}, []),
        ({"memory_mb": 1.02}, ["Weights"]),
        ({"pick": None}, ["candidate"]),
    ],
)
def test_compare_picks_names_what_got_worse_beyond_noise(tmp_path, changes, worse):
    first, second = picked(tmp_path, "first"), picked(tmp_path, "second", **changes)
    judged = compare_picks(first, second).set_index("number")["verdict"]
    assert [*judged.index[judged == "worse"]] == worse


def test_compare_picks_of_too_few_rounds_for_an_interval_are_compared(tmp_path):
    few = {"latency_p50_low_ms": None, "latency_p50_high_ms": None, "latency_relative": None}
    runs = picked(tmp_path, "first", **few), picked(tmp_path, "second", **few)
    judged = compare_picks(*runs).set_index("number")["verdict"]
    assert judged[LATENCY] == judged["Validation accuracy"] == "within noise"  # they are the same


def test_compare_picks_judges_no_accuracy_on_other_data(tmp_path):
    low = {"accuracy": 0.5, "accuracy_low": 0.49, "accuracy_high": 0.51}
    runs = picked(tmp_path, "first"), picked(tmp_path, "second", **low)
    judged = compare_picks(*runs, accuracy=False, latency=False).set_index("number")["verdict"]
    assert judged["Validation accuracy"] == judged[LATENCY] == "not judged"
    assert judged["Weights"] == "within noise"


SEEN = {"checksum": "1", "counts": {"train": 10, "validation": 5}, "preprocessing": {"a": {"x": 1}}}


@pytest.mark.parametrize(
    ("changes", "judged"),
    [
        ({"preprocessing": {"a": {"x": 1}, "b": {"x": 2}}}, True),  # another network beside it
        ({"counts": {"train": 20, "validation": 5}}, True),
        ({"counts": {"train": 10, "validation": 6}}, False),
        ({"preprocessing": {"a": {"x": 2}}}, False),
        ({"checksum": "2"}, False),
    ],
)
def test_accuracies_on_the_same_validation_images_are_judged(changes, judged, tmp_path):
    facts = {"parameters": {}, "host": {"cpu": "A"}}
    runs = [
        results.Results(RunFolder(tmp_path), facts | {"data": data}, None, None, ())
        for data in (SEEN, SEEN | changes)
    ]
    assert (obstacles(*runs)["accuracy"] == []) == judged
