import base64
import gzip
import hashlib
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from edgeopt.reports.notebook_page import notebook_body, tidy_table
from edgeopt.reports.page_parts import as_text, describe, signed, table_html, with_unit
from edgeopt.reports.pages import (
    finished,
    images_as_seen,
    write_comparison,
    write_run_index,
    write_runs_index,
)
from plotly.offline import get_plotlyjs

from edgeopt.__main__ import main
from edgeopt.decision.choice import decide
from edgeopt.decision.gates import Constraints, Gates
from edgeopt.reports import pages
from edgeopt.reports.card import interval, points, times
from edgeopt.reports.explorer import (
    bound_names,
    column_spec,
    read_sweep,
    script_json,
    verdict,
)
from edgeopt.reports.manifest import read_manifest, write_manifest
from edgeopt.reports.stamps import Record, publish
from edgeopt.study.folder import RunFolder, open_run
from tests.browser.synthetic import synthetic_run, synthetic_sweep

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    synthetic_run(folder, "first")
    sweep = synthetic_sweep()
    slower = sweep["candidate"] == "small_cnn-p50-onnxruntime-int8"
    sweep.loc[slower, [name for name in sweep if name.startswith("latency_p50")]] *= 2
    synthetic_run(folder, "second", sweep=sweep)
    write_comparison(RunFolder(folder / "first"), RunFolder(folder / "second"))
    return folder


def soup(path):
    return BeautifulSoup(path.read_text(), "html.parser")


def explorer(page):
    return json.loads(page.find(id="explorer-data").string)


def index_of(folder, sweep=None, summary=None):
    """Index of a run that holds only what is given."""
    run = open_run("bare", root=folder)
    notebooks = {"04_sweep": {"status": "not run", "title": "Sweep", "error": ""}}
    facts = read_manifest(RunFolder(folder / "first")) | {"notebooks": notebooks}
    if sweep is not None:
        run.write_table("sweep_results.csv", sweep)
    if summary is not None:
        run.write_json("summary.json", summary)
    page = soup(write_run_index(run, facts))
    for path in run.root.iterdir():
        path.unlink()
    run.root.rmdir()
    return page


def test_the_card_leads_with_the_pick_its_numbers_and_the_reason(reports):
    page = soup(reports / "first/index.html")
    summary = json.loads((reports / "first/summary.json").read_text())
    card = page.find(class_="card")
    assert page.find(["h2"]) == card.h2
    assert card.find(class_="id").string == summary["pick"]["candidate"]
    assert summary["reason"] in card.text
    assert summary["what_it_would_take"] in card.text
    assert as_text(summary["pick"]["accuracy"], "accuracy") in card.find(class_="value").text
    assert "95% interval" in card.find(class_="range").text
    assert [head.text for head in card.find_all("th", scope="col")][1:] == [
        "Pick",
        "Baseline",
        "Runner-up",
        "Fastest uncompressed",
    ]
    # made up as 5.0 for PyTorch, 1.0 for ExecuTorch: the runtime alone is five times as fast
    notes = [note.text for note in card.find_all(class_="against")]
    shown = {role: summary[role]["latency_p50_ms"] for role in ("pick", "baseline")}
    ratio = shown["baseline"] / shown["pick"]
    assert f"{ratio:.1f}\N{MULTIPLICATION SIGN} faster than the baseline" in notes
    assert f"{ratio / 5:.1f}\N{MULTIPLICATION SIGN} faster than uncompressed ExecuTorch" in notes


def test_what_was_measured_after_the_choice_is_on_the_card(reports):
    sweep = synthetic_sweep()
    summary = decide(sweep, gates=Gates()).to_dict()
    page = index_of(reports, sweep.assign(test_accuracy=0.8123), summary)
    assert "81.2% on test images, scored once" in page.find(class_="card").text
    bounds = {"test_accuracy_low": 0.8011, "test_accuracy_high": 0.8234}
    page = index_of(reports, sweep.assign(test_accuracy=0.8123, **bounds), summary)
    expected = "81.2% on test images, scored once, 95% interval 80.1% to 82.3%"
    assert expected in page.find(class_="card").text


def against_pick(summary, role, **changes):
    """Row of the comparison on test images: what ``role`` leads the pick by."""
    row = {
        "candidate": summary[role]["candidate"],
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
def test_the_card_says_whether_the_pick_differs_on_the_test_images(reports, significant, words):
    sweep = synthetic_sweep()
    summary = decide(sweep, gates=Gates()).to_dict()
    row = against_pick(summary, "baseline", significant=significant)
    page = index_of(reports, sweep.assign(test_accuracy=0.8), summary | {"against_pick": [row]})
    text = (
        f"there -0.5 points (95% interval -1.2 to +0.2, {words}"
        "exact McNemar test, Tango interval, p = 0.042) against the baseline"
    )
    assert text in page.find(class_="card").text


@pytest.mark.parametrize(("lead", "word"), [(0.0056, "better: +0.6"), (-0.0056, "worse: -0.6")])
def test_the_card_names_the_runner_up_s_lead_only_when_it_is_significant(reports, lead, word):
    sweep = synthetic_sweep()
    summary = decide(sweep, gates=Gates()).to_dict()
    changes = {"accuracy_difference": lead, "p_holm": 0.035}
    for significant in (True, False):
        row = against_pick(summary, "runner_up", significant=significant, **changes)
        page = index_of(reports, sweep.assign(test_accuracy=0.8), summary | {"against_pick": [row]})
        told = f"there the runner-up is {word} points" in page.find(class_="card").text
        assert told == significant


def test_the_rules_are_told_with_how_many_met_them():
    sweep = synthetic_sweep()
    decision = decide(sweep, gates=Gates()).to_dict()
    parameters = {**vars(Gates()), **vars(Constraints(max_latency_p95_ms=0.5))}
    told = dict(pages.rules_of(decision, sweep, {**parameters, "active_memory_budget_mb": 0.05}))
    assert told["weights"] == "refused above 51.2 KiB"
    assert told["accuracy drop"] == "good up to 2.00 points, refused above 5.00 points"
    assert told["latency, 95th percentile"] == "refused above 0.5 ms"
    kept = len(sweep) - len(decision["rejected"])
    assert told["candidates"].startswith(f"{sweep['accepted'].sum()} of {len(sweep)} fit")
    assert f"{kept} of these are refused by no rule" in told["candidates"]
    assert pages.rules_of(decision, sweep, {"epochs": 1}) == []


def test_the_file_to_ship_is_the_very_one_that_was_measured(tmp_path):
    run = open_run("ship", root=tmp_path)
    for folder, content in (("quantization", b"other"), ("sweep", b"measured")):
        run.write_bytes(f"artifacts/{folder}/seed0/net.pte", content)
    sha = hashlib.sha256(b"measured").hexdigest()
    pick = {"artifact": "seed0/net.pte", "artifact_sha256": sha}
    assert pages.shipped_file(run, pick) == "artifacts/sweep/seed0/net.pte"
    assert pages.shipped_file(run, pick | {"artifact_sha256": "0" * 64}) == ""
    assert pages.shipped_file(run, {"candidate": "net"}) == ""


def test_scaled_latencies_are_called_estimates(reports):
    page = index_of(reports, synthetic_sweep().assign(latency_kind="estimated"))
    assert any("All latencies are estimates" in banner.text for banner in page.select(".banner"))


def test_the_explorer_holds_every_candidate_in_display_units(reports):
    data = explorer(soup(reports / "first/index.html"))
    sweep = pd.read_csv(reports / "first/sweep_results.csv")
    assert data["values"]["candidate"] == sweep["candidate"].to_list()
    assert data["values"]["accuracy"][0] == pytest.approx(100 * sweep["accuracy"][0], rel=1e-5)
    assert data["values"]["artifact_bytes"][0] == pytest.approx(
        sweep["artifact_bytes"][0] / 1024, rel=1e-5
    )
    assert data["bounds"]["latency_p50_ms"] == ["latency_p50_low_ms", "latency_p50_high_ms"]
    failed = sweep.index[sweep["status"] == "failed"][0]
    assert data["values"]["state"][failed] == "failed"
    assert data["values"]["reason"][failed].startswith("RuntimeError")
    assert data["values"]["accuracy"][failed] is None
    assert not data["values"]["accepted"][failed]


def test_every_figure_has_its_words_and_its_numbers(reports):
    figure = soup(reports / "first/index.html").find("figure")
    assert figure.img["alt"].startswith("Mean validation accuracy falls")
    assert figure.img["src"].startswith("data:image/webp;base64,")
    assert "25%" in figure.find("details").text
    notebook = soup(reports / "first/01_baseline_training.html").find("figure")
    assert notebook.img["alt"] == figure.img["alt"]
    assert "25%" in notebook.find("details").text


def test_a_notebook_page_has_contents_and_code_behind_a_click(reports):
    page = soup(reports / "first/01_baseline_training.html")
    links = page.find("nav", class_="contents").find_all("a")
    assert [link.text for link in links] == ["The data", "What it looks like", "In one picture"]
    assert all(page.find(id=link["href"].removeprefix("#")) for link in links)
    blocks = page.find_all("details", class_="code")
    assert not any(block.has_attr("open") for block in blocks)
    assert blocks[0].summary.text == "Parameters of this run"
    assert "\x1b" not in page.text


def test_a_failed_notebook_shows_its_traceback_and_links_to_no_missing_page(reports):
    page = soup(reports / "first/02_pruning.html")
    assert "ValueError: <b>level</b> is 1" in page.find(class_="failure").text
    for path in reports.rglob("*.html"):
        links = [a["href"] for a in soup(path).find_all("a") if not a["href"].startswith("#")]
        assert [link for link in links if not (path.parent / link).exists()] == []


def test_pages_load_nothing_from_a_network(reports):
    for path in reports.rglob("*.html"):
        page = soup(path)
        loaded = page.find_all(["script", "link", "img", "iframe", "source", "object"])
        addresses = [tag.get("src") or tag.get("href") or "data:" for tag in loaded]
        assert [address for address in addresses if not address.startswith("data:")] == []
        assert not re.search(
            r"@import|url\(", "".join(tag.string for tag in page.find_all("style"))
        )


def test_the_index_stays_under_its_size(reports):
    assert (reports / "first/index.html").stat().st_size < 6 * 2**20


def test_the_plotting_library_is_in_the_page_packed(reports):
    packed = soup(reports / "first/index.html").find(id="plotly").string
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_the_figures_of_the_argument_come_first_and_unfolded(tmp_path):
    run = synthetic_run(tmp_path)
    drawn = run.path("figures/accuracy_by_level.png").read_bytes()
    for name in ("pruning_curves", "frontier"):
        run.write_bytes(f"figures/{name}.png", drawn)
    facts = read_manifest(run)
    groups = pages.figure_groups(run, facts["notebooks"])
    assert [(title, [figure.name for figure in group]) for title, group in groups] == [
        ("", ["frontier", "pruning_curves"]),
        ("Others", ["accuracy_by_level"]),
    ]
    [folded] = soup(write_run_index(run, facts)).find_all("details", class_="group")
    assert len(folded.find_all("figure")) == 1
    assert not folded.has_attr("open")


def test_html_in_names_is_text(reports):
    sweep = synthetic_sweep(levels=(0.0,))
    sweep.loc[0, "candidate"] = NASTY
    sweep.loc[1, ["status", "error", "accepted"]] = "failed", f"</script>{NASTY}", False
    summary = decide(sweep, gates=Gates()).to_dict() | {"reason": NASTY}
    page = index_of(reports, sweep, summary)
    assert page.find("img", src="x") is None
    assert NASTY in page.find(class_="card").text
    assert explorer(page)["values"]["candidate"][0] == NASTY
    assert explorer(page)["values"]["reason"][1] == f"</script>{NASTY}"
    notebook = soup(reports / "first/01_baseline_training.html")
    assert "<script>alert(1)</script>" in notebook.find("th", string=re.compile("script")).text


def test_a_run_with_nothing_says_so(reports):
    page = index_of(reports)
    words = " ".join(banner.text for banner in page.find_all(class_="banner"))
    assert "no notebook of this run has written summary.json" in words
    assert "no notebook of this run has written sweep_results.csv" in words
    assert page.find(id="explorer") is None
    assert page.find(class_="card") is None


def test_figures_stand_under_the_notebook_that_drew_them(tmp_path):
    run = synthetic_run(tmp_path)
    states = read_manifest(run)["notebooks"]
    assert [title for title, _ in pages.figure_groups(run, states)] == ["Others"]
    executed = run.path("02_pruning.ipynb")
    temporary = executed.rename(run.path(".running.ipynb"))
    record = Record("done", "s", outputs={"figures/accuracy_by_level.png": "x"})
    publish(temporary, record, to=executed)
    [(title, [figure])] = pages.figure_groups(run, states)
    assert (title, figure.name) == ("Pruning", "accuracy_by_level")


def test_one_candidate_is_said(reports):
    sweep = synthetic_sweep(levels=(0.0,)).head(1).assign(accepted=True)
    page = index_of(reports, sweep, decide(sweep, gates=Gates()).to_dict())
    assert "only one candidate" in page.text
    assert explorer(page)["values"]["candidate"] == ["small_cnn-p0-torch-fp32"]


def test_all_rejected_is_said_with_the_nearest_constraint(reports):
    sweep = synthetic_sweep().assign(accepted=False, active_budget_mb=1e-6)
    page = index_of(reports, sweep, decide(sweep, gates=Gates()).to_dict())
    assert page.find(class_="card").h2.text == "No candidate can be recommended"
    assert "comes nearest" in page.find(class_="card").text
    assert "None of the 44 candidates fits" in page.text


def test_all_failed_is_a_table_of_errors_without_a_plot(reports):
    numbers = synthetic_sweep().select_dtypes("number").columns.drop("pruning_level")
    sweep = synthetic_sweep().assign(status="failed", error="no kernel", accepted=False)
    sweep[numbers] = np.nan
    page = index_of(reports, sweep)
    assert "All 44 candidates failed" in page.text
    assert page.find(id="frontier") is None
    assert set(explorer(page)["values"]["state"]) == {"failed"}
    assert set(explorer(page)["values"]["reason"]) == {"no kernel"}


@pytest.mark.parametrize("content", ["", "candidate,accuracy\n", 'a,b\n1,2,3\n"'])
def test_a_broken_sweep_is_said(reports, content):
    run = open_run("broken", root=reports)
    run.write_bytes("sweep_results.csv", content.encode())
    sweep, reason = read_sweep(run)
    assert sweep is None
    assert reason.startswith("No candidates: sweep_results.csv")
    run.path("sweep_results.csv").unlink()
    run.root.rmdir()


@pytest.mark.parametrize("content", ["{", '{"pick": 3}'])
def test_a_broken_summary_is_said(tmp_path, content):
    run = open_run("broken", root=tmp_path)
    run.write_bytes("summary.json", content.encode())
    summary, reason = pages.read_summary(run)
    assert summary is None
    assert reason.startswith("No decision: summary.json cannot be read: ")


def test_the_index_of_all_runs_lists_each_with_its_pick(reports):
    page = soup(reports / "index.html")
    assert [row.th.a["href"] for row in page.tbody.find_all("tr")] == [
        "first/index.html",
        "second/index.html",
    ]
    assert "failed" in page.tbody.tr.text
    assert page.find("a", href="compare-first-second.html")


def test_an_unreadable_run_is_named_and_the_others_stay(reports, tmp_path):
    good = open_run("good", root=tmp_path)
    facts = read_manifest(RunFolder(reports / "first"))
    write_manifest(good, {**facts, "run": "good"})
    open_run("bad", root=tmp_path).write_bytes("manifest.json", b"{")
    page = soup(write_runs_index(tmp_path))
    assert page.find("a", href="good/index.html")
    assert "Run bad is not listed" in page.find(class_="banner").text


def test_no_run_yet_says_how_to_make_one(tmp_path):
    assert "make report" in soup(write_runs_index(tmp_path)).text


def test_two_runs_compared_name_the_regression(reports):
    page = soup(reports / "compare-first-second.html")
    first = page.find_all("tbody")[-1].tr
    assert first.th.text == "small_cnn-p50-onnxruntime-int8"
    assert first.td.text == "regression"
    assert "regression: 1" in page.find(class_="lead").text


def test_runs_on_other_data_and_another_cpu_are_shown_but_not_judged(reports, tmp_path):
    runs = [open_run(name, root=tmp_path) for name in ("a", "b")]
    facts = read_manifest(RunFolder(reports / "first"))
    other = {"data": {"name": "mnist", "checksum": "1"}, "host": facts["host"] | {"cpu": "Z80"}}
    for run, changes in zip(runs, ({}, other), strict=True):
        run.write_table("sweep_results.csv", synthetic_sweep())
        write_manifest(run, facts | changes)
    page = soup(write_comparison(*runs))
    banners = " ".join(banner.text for banner in page.find_all(class_="banner"))
    assert "used different data: invented and mnist" in banners
    assert "and Z80" in banners
    assert "host: cpu" in page.find("tbody").text
    assert "not judged: 43" in page.find(class_="lead").text


def test_comparing_a_run_that_is_not_there_is_one_error(reports, monkeypatch, caplog):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(reports))
    assert main(["compare", "first", "third"]) == 2
    assert "no run 'third'" in caplog.text
    assert main(["compare", "first", "second"]) == 0


def test_comparing_a_run_without_candidates_says_which(reports, tmp_path):
    empty = open_run("empty", root=tmp_path)
    write_manifest(empty, read_manifest(RunFolder(reports / "first")))
    with pytest.raises(ValueError, match=r"run empty cannot be compared. No candidates: no note"):
        write_comparison(RunFolder(reports / "first"), empty)


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (0.88421, "accuracy", "88.4%"),
        (0.25, "pruning_level", "25%"),
        (0.0, "int8_mac_share", "0.0%"),
        (0.020345, "latency_ms", "0.0203"),
        (12.5, "latency_ms", "12.5"),
        (1234567, "macs", "1,234,567"),
        (5.2e-5, "energy_proxy_j", "5.20e-05"),
        (float("nan"), "accuracy", "\N{EN DASH}"),
        (None, "accuracy", "\N{EN DASH}"),
        (True, "accepted", "True"),
    ],
)
def test_cells_in_words(value, column, text):
    assert as_text(value, column) == text


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (8000, "artifact_bytes", "7.8 KiB"),
        (0.5, "memory_mb", "512.0 KiB"),
        (3 * 2**20, "peak_rss_bytes", "3.00 MiB"),
        (6.25e-5, "energy_proxy_j", "62.5 \N{MICRO SIGN}J"),
        (2e-12, "energy_model_j", "0.00200 nJ"),
        (0.0203, "latency_p50_ms", "0.0203 ms"),
        (0.881, "accuracy", "88.1%"),
        (None, "macs", "\N{EN DASH}"),
    ],
)
def test_numbers_with_a_unit_that_suits_them(value, column, text):
    assert with_unit(value, column) == text


def test_differences_and_ratios_against_the_baseline():
    pick, baseline = {"accuracy": 0.87}, {"accuracy": 0.885}
    change = "-1.5 points against the baseline on validation images"
    assert points(pick, baseline) == change
    assert points(pick, {}) == ""
    ends = {"accuracy_drop_low": 0.011, "accuracy_drop_high": 0.019}
    ends["accuracy_drop_confidence"] = 0.9
    between = f"{change}, paired 90% interval -1.9 to -1.1"
    assert points(pick | ends, baseline) == between
    within = points(pick | ends | {"accuracy_within": 0.02}, baseline)
    assert within == f"{between}: within the 2 points that the gate allows"
    assert signed(-0.04) == "0.0"
    words = ("faster", "slower")
    assert times({"x": 1.0}, {"x": 6.64}, "x", words=words) == (
        "6.6\N{MULTIPLICATION SIGN} faster than the baseline"
    )
    assert times({"x": 3.0}, {"x": 1.0}, "x", words=words).startswith(
        "3.0\N{MULTIPLICATION SIGN} slower"
    )
    assert times({"x": 1.01}, {"x": 1.0}, "x", words=words) == "the same as the baseline"
    assert times({"x": 0.0}, {"x": 1.0}, "x", words=words) == ""


def test_an_interval_is_only_named_where_there_is_one():
    assert interval({"accuracy_low": 0.8, "accuracy_high": 0.9}, "accuracy") == (
        "95% interval 80.0% to 90.0%"
    )
    assert interval({"accuracy_low": 0.8}, "accuracy") == ""
    assert bound_names("latency_p50_ms") == ("latency_p50_low_ms", "latency_p50_high_ms")


def test_candidates_in_words():
    row = {"candidate": "c", "runtime": "executorch", "precision": "int8", "pruning_level": 0.25}
    assert describe(row | {"recipe": "scratch"}) == "ExecuTorch int8, 25% pruned, scratch"
    assert (
        describe(row | {"pruning_level": 0.0, "recipe": "baseline"}) == "ExecuTorch int8, unpruned"
    )
    assert describe({"candidate": "c", "precision": "int8"}) == "c"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"candidate": "a", "accepted": True}, ("eligible", "")),
        ({"candidate": "a", "accepted": False}, ("over budget", "")),
        ({"candidate": "b", "accepted": True}, ("refused", "recall")),
        ({"candidate": "b", "accepted": False}, ("over budget", "recall")),
        ({"candidate": "a"}, ("eligible", "")),
        ({"candidate": "a", "status": "failed", "error": "boom"}, ("failed", "boom")),
        ({"candidate": "a", "status": "failed", "error": float("nan")}, ("failed", "")),
    ],
)
def test_the_verdict_on_a_candidate(row, words):
    assert verdict(row, reasons={"b": "recall"}) == words


def test_columns_say_their_unit_and_axis():
    small, large = pd.Series([900.0, np.nan, 2**20 - 1]), pd.Series([900.0, 2**20])
    assert column_spec("artifact_bytes", small)["title"] == "Artifact on disk (KiB)"
    assert column_spec("artifact_bytes", large)["title"] == "Artifact on disk (MiB)"
    assert column_spec("memory_mb", small / 2**20)["title"] == "Weights (KiB)"
    assert column_spec("memory_mb", large / 2**20)["title"] == "Weights (MiB)"
    assert column_spec("accuracy", pd.Series([0.5])) == {
        "key": "accuracy",
        "title": "Validation accuracy (%)",
        "kind": "percent",
        "axis": "y",
    }
    assert column_spec("runtime", pd.Series(["torch"]))["axis"] is None


def test_json_in_a_page_cannot_end_its_script():
    assert "</" not in script_json({"a": "</script>"})
    assert json.loads(script_json({"a": "</script>"})) == {"a": "</script>"}


def tidied(df):
    page = BeautifulSoup(df.to_html(), "html.parser")
    tidy_table(page.table)
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in page("tr")], page


def test_the_counter_of_a_data_frame_is_dropped_and_its_first_column_heads_the_rows():
    rows, page = tidied(pd.DataFrame({"name": ["a", "b" * 41], "share": [0.5, np.nan]}, [7, 3]))
    assert rows == [["name", "share"], ["a", "0.5"], ["b" * 41, "NaN"]]
    assert [cell.get_text() for cell in page.find_all("th", scope="row")] == ["a", "b" * 41]
    assert [cell.get_text() for cell in page.select(".number")] == ["share", "0.5", "NaN"]
    assert [cell["class"] for cell in page.find_all("th", scope="row")] == ["words"] * 2


def test_a_named_index_stays_and_its_name_joins_the_headings():
    df = pd.DataFrame({"x": [1, 2]}, pd.Index(["a", "b"], name="class"))
    assert tidied(df)[0] == [["class", "x"], ["a", "1"], ["b", "2"]]
    assert tidied(df.rename_axis(columns="axis"))[0][0] == ["class", "x"]
    assert tidied(df.set_axis([0, 1]))[0] == [["x"], ["1"], ["2"]]
    assert tidied(df.set_axis(pd.Index([0, 1], name="epoch")))[0][1] == ["0", "1"]


def test_a_table_with_cells_that_span_keeps_its_form():
    df = pd.DataFrame({"x": [1, 2]}, pd.MultiIndex.from_tuples([("a", 0), ("a", 1)]))
    assert tidied(df)[0] == [["", "", "x"], ["a", "0", "1"], ["1", "2"]]


def test_the_log_of_a_cell_is_one_block(tmp_path):
    v4 = nbformat.v4
    parts = [v4.new_output("stream", name="stderr", text=text) for text in ("[", "W", "]\n")]
    notebook = v4.new_notebook(cells=[v4.new_code_cell("x", outputs=parts)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    [log] = notebook_body(tmp_path / "a.ipynb").find_all("details", class_="log")
    assert log.pre.get_text() == "[W]\n"


def test_a_block_in_rich_output_leaves_scrolling_to_the_page(tmp_path):
    v4 = nbformat.v4
    rich = v4.new_output("display_data", {"text/html": '<pre style="overflow-x:auto">x</pre>'})
    notebook = v4.new_notebook(cells=[v4.new_code_cell("x", outputs=[rich])])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert str(notebook_body(tmp_path / "a.ipynb").select_one(".scroll pre")) == "<pre>x</pre>"


def test_long_tables_say_what_they_leave_out():
    html = table_html(pd.DataFrame({"<b>": range(230)}))
    assert html.count("<tr>") == 201
    assert "30 more rows" in html
    assert "&lt;b&gt;" in html


def test_a_run_ended_when_its_last_notebook_did():
    states = {"a": {"finished": "2026-01-02T03:04:05.6"}, "b": {"finished": "2026-01-02T03:09:00"}}
    assert finished(states | {"c": {}}) == "2026-01-02 03:09 UTC"
    assert finished({"c": {}}) == ""


def test_the_card_says_how_the_pick_takes_its_images():
    how = {"image_size": 96, "resize": "crop", "interpolation": "bicubic", "channels": 3}
    data = {"preprocessing": {"net": {**how, "mean": [0.5, 0.4, 0.3], "std": 0.25}}}
    assert images_as_seen("net", data) == (
        "96x96 by crop, bicubic, colour, values from 0 to 1, mean 0.5, 0.4, 0.3, std 0.25"
    )
    own = {**how, "image_size": None, "channels": 1, "mean": None, "std": None}
    assert images_as_seen("net", {"preprocessing": {"net": own}}) == (
        "their own size, grey, values from 0 to 1"
    )
    assert images_as_seen("other", data) == images_as_seen(None, {}) == ""
