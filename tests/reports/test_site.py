import json
import os
import resource
import subprocess
from functools import partial
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from edgeopt.reports.records.manifest import read_manifest, verify, write_manifest
from edgeopt.reports.runner import make_comparison, publish_run
from edgeopt.reports.site import build, build_runs_index, published, saved_figure
from edgeopt.study.folder import RunFolder, open_run
from tests.browser.synthetic import synthetic_run, synthetic_sweep


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    sweep = synthetic_sweep()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_REPORTS", str(folder))
        first = synthetic_run(folder, "first", sweep=sweep)
        slower = sweep["candidate"] == "small_cnn-p50-onnxruntime-int8"
        sweep.loc[slower, [name for name in sweep if name.startswith("latency_p50")]] *= 2
        second = synthetic_run(folder, "second", sweep=sweep)
        assert make_comparison(first, second)
    return folder


def soup(path):
    return BeautifulSoup(path.read_text(), "html.parser")


def test_the_front_page_is_a_notebook_with_the_pick_first(reports):
    page = soup(reports / "first/index.html").find("article")
    summary = json.loads((reports / "first/summary.json").read_text())
    assert page.h1.get_text(strip=True, separator=" ").startswith("Which model to ship?")
    card = page.find(class_="card-of-pick")
    assert card.find(class_="pick").text == summary["pick"]["candidate"]
    assert summary["reason"] in card.text
    assert summary["what_it_would_take"] in page.text
    assert "Notebook 02_pruning failed: ValueError: <b>level</b> is 1" in page.text
    heads = {head.get_text(strip=True).rstrip("#") for head in page.find_all("h2")}
    assert {"What would change it", "All candidates", "The rules"} <= heads


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_a_network(reports):
    pages = [path for path in reports.rglob("*.html") if path.parent.name != "_static"]
    assert len(pages) > 10
    for path in pages:
        for tag in soup(path).find_all(["a", "link", "script", "img", "iframe", "source"]):
            parts = urlsplit(tag.get("href") or tag.get("src") or "")
            if parts.scheme in ("http", "https"):
                assert tag.name == "a", (path, tag)
            elif parts.path and parts.scheme != "data":
                assert (path.parent / unquote(parts.path)).exists(), (path, tag)


def test_every_file_of_the_run_is_reached_from_its_pages(reports):
    run = reports / "first"
    linked = set()
    for path in run.glob("*.html"):
        for tag in soup(path).find_all(["a", "img", "link", "script"]):
            address = urlsplit(tag.get("href") or tag.get("src") or "").path
            linked.add(os.path.normpath(address))
    mine = {name for name in read_manifest(RunFolder(run))["artifacts"] if "_static" not in name}
    assert mine - linked <= {"searchindex.js", "objects.inv", "index.ipynb"}


def test_a_figure_has_caption_numbers_and_a_name_to_link_to(reports):
    figure = soup(reports / "first/01_baseline_training.html").find(id="figure-accuracy_by_level")
    assert figure.img["alt"].startswith("Mean validation accuracy falls")
    assert figure.img["src"] == "figures/accuracy_by_level.png"
    assert figure.img["alt"] in figure.figcaption.text
    head = [cell.text for cell in figure.find("details").find_all("th", scope="col")]
    assert head == ["Pruning level (%)", "Validation accuracy (%)"]


def test_a_saved_figure_is_shown_again_and_a_missing_one_is_nothing(reports):
    run = RunFolder(reports / "first")
    html = saved_figure(run, "accuracy_by_level").data
    assert 'src="figures/accuracy_by_level.png"' in html
    assert "Mean validation accuracy falls" in html
    assert saved_figure(run, "gallery").data == ""


def test_code_is_folded_by_tags_and_logs_are_left_out(reports):
    notebook = published(RunFolder(reports / "first"), "01_baseline_training")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    names = [output.get("name") for cell in code for output in cell.outputs]
    assert "stderr" not in names
    long = nbformat.v4.new_code_cell("a = 1\n" * 8)
    assert "hide-input" not in code[1].metadata.get("tags", [])
    notebook = nbformat.v4.new_notebook(cells=[long])
    nbformat.write(notebook, reports / "first/.long.ipynb")
    [cell] = published(RunFolder(reports / "first"), ".long").cells
    assert "hide-input" in cell.metadata["tags"]
    (reports / "first/.long.ipynb").unlink()


def test_a_failed_notebook_shows_its_traceback(reports):
    assert "ValueError: <b>level</b> is 1" in soup(reports / "first/02_pruning.html").text


def test_search_is_there_without_a_server(reports):
    index = (reports / "first/searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    assert "01_baseline_training" in index
    assert not [*reports.rglob("*.map"), *reports.rglob("_sources")]


def test_the_manifest_has_the_pages_and_a_second_publishing_does_nothing(reports, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(reports))
    run = RunFolder(reports / "second")
    assert "_static/site.css" in read_manifest(run)["artifacts"]
    assert verify(run).empty
    before = run.path("index.html").stat().st_mtime_ns
    facts = {k: v for k, v in read_manifest(run).items() if k != "artifacts"}
    assert publish_run(run, facts)
    assert run.path("index.html").stat().st_mtime_ns == before


def test_the_index_of_all_runs_has_the_latest_first_with_host_commit_and_seeds(reports):
    page = soup(reports / "index.html")
    heads = [cell.text for cell in page.select("table thead th")]
    assert {"Host", "Commit", "Seeds", "Finished", "Recommended"} <= set(heads)
    links = [link["href"] for link in page.select("table tbody a")]
    assert sorted(links) == ["first/index.html", "second/index.html"]
    assert "failed" in page.table.text
    assert page.find("a", href="compare-first-second/index.html")


def test_an_unreadable_run_is_named_and_the_others_stay(reports, tmp_path):
    facts = read_manifest(RunFolder(reports / "first"))
    for name, ended in (("old", "2025-01-01T00:00"), ("new", "2026-01-01T00:00")):
        states = {"04_sweep": {"status": "done", "title": "x", "error": "", "finished": ended}}
        write_manifest(open_run(name, root=tmp_path), {**facts, "run": name, "notebooks": states})
    open_run("bad", root=tmp_path).write_bytes("manifest.json", b"{")
    page = soup(build_runs_index(tmp_path))
    assert [a["href"] for a in page.select("table tbody a")] == ["new/index.html", "old/index.html"]
    assert "Run bad is not listed" in page.text


def test_what_sphinx_cannot_write_is_told_in_one_line(tmp_path, monkeypatch):
    def limited(*args, run=subprocess.run, **options):
        least = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (5000, 5000))
        return run(*args, preexec_fn=least, **options)

    monkeypatch.setattr(subprocess, "run", limited)
    with pytest.raises(
        OSError, match=r"^the site of \S+ cannot be built: \[Errno 27\] File too large$"
    ):
        build({"index.md": "# Title"}, tmp_path, title="t")


def test_no_run_yet_says_how_to_make_one(tmp_path):
    assert "make report" in soup(build_runs_index(tmp_path)).text


def test_two_runs_compared_name_the_regression(reports):
    page = soup(reports / "compare-first-second/index.html").find("article")
    lines = [table("tr") for table in page("table")]
    tables = [[[cell.text for cell in row(["th", "td"])] for row in rows] for rows in lines]
    rows = next(rows for rows in tables if rows[0][:2] == ["Candidate", "Verdict"])
    assert rows[1][:2] == ["small_cnn-p50-onnxruntime-int8", "regression"]
