import json

import pytest
from PIL import Image

from edgeopt.decision.frontier import pareto_frontier
from edgeopt.reports.commands import main
from edgeopt.reports.pages import readme
from edgeopt.reports.pages.browser import find_browser
from edgeopt.reports.pages.readme import on_white, outside, picture, results_table, write_readme
from edgeopt.reports.records.manifest import read_manifest
from edgeopt.reports.records.results import read_results
from tests.browser.synthetic import synthetic_run

README = f"# title\n\n{readme.BEGIN}\nold\n{readme.END}\n\nrest\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = synthetic_run(tmp_path_factory.mktemp("reports"), "made-up")
    sweep = run.read_table("sweep_results.csv")
    run.write_table("pareto_frontier_latency.csv", pareto_frontier(sweep, "latency_p50_ms"))
    drawn = run.path("figures/accuracy_by_level.png").read_bytes()
    run.write_bytes("figures/frontier.png", drawn)
    return run


@pytest.fixture
def root(tmp_path, made, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "README.md").write_text(README)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEOPT_REPORTS", str(made.root.parent))
    return tmp_path


@pytest.fixture
def no_browser(monkeypatch):
    monkeypatch.setenv("PATH", "")


def summary_of(run):
    return json.loads(run.path("summary.json").read_text())


def test_results_replace_only_what_stands_between_the_marks(root, made, no_browser, caplog):
    assert main(["readme", "--run", "made-up"]) == 0
    once = (root / "README.md").read_text()
    assert once.startswith(f"# title\n\n{readme.BEGIN}\n\n## What the made-up run found")
    assert once.endswith(f"{readme.END}\n\nrest\n")
    assert "old" not in once
    assert "![Mean validation accuracy falls from the unpruned" in once
    assert f"]({readme.FRONTIER})" in once
    assert read_manifest(made)["host"]["cpu"] in once
    with Image.open(root / readme.FRONTIER) as drawn:
        assert drawn.mode == "RGB"
        assert drawn.getpixel((0, 0)) == (255, 255, 255)
    assert "no picture of the decision card: no browser is on the path" in caplog.text
    assert readme.CARD not in once
    assert main(["readme", "--run", "made-up"]) == 0
    assert (root / "README.md").read_text() == once


def test_the_decision_card_is_a_picture_of_the_page(root, made):
    try:
        find_browser()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    write_readme(made, root=root)
    with Image.open(root / readme.CARD) as card:
        assert card.width > 1200
        assert len(card.getcolors(10**6)) > 2
    reason = summary_of(made)["reason"]
    assert f"![Decision card. {reason}]({readme.CARD})" in (root / "README.md").read_text()


def test_the_table_holds_the_frontier_and_the_baseline_fastest_first(made):
    summary = summary_of(made)
    table = results_table(read_results(made))
    frontier = made.read_table("pareto_frontier_latency.csv")
    sweep = made.read_table("sweep_results.csv").set_index("candidate")
    baseline, pick = (summary[role]["candidate"] for role in ("baseline", "pick"))
    assert len(table) == len({*frontier["candidate"], baseline})
    assert table["Candidate"].str.endswith("(baseline)").sum() == 1
    assert table["Candidate"].str.endswith("** (pick)").sum() == 1
    latencies = [float(text.removesuffix(" ms")) for text in table["Latency, median"]]
    assert latencies == sorted(latencies)
    row = table[table["Candidate"].str.endswith("(pick)")].iloc[0]
    accuracy = [f"{100 * sweep.loc[pick, name]:.1f}%" for name in sweep if name[:8] == "accuracy"]
    assert row["Validation accuracy"] == "{} ({} to {})".format(*accuracy)
    assert row["Test accuracy"] == "\N{EN DASH}"


def test_words_of_a_picture_keep_to_one_line():
    assert picture("two\nlines [1]", "p.png") == "![two lines \\[1\\]](p.png)"


def test_a_transparent_figure_is_put_on_white():
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    assert on_white(clear).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("text", ["nothing", readme.BEGIN, f"{readme.END} {readme.BEGIN}"])
def test_a_readme_without_marks_is_said(text):
    with pytest.raises(ValueError, match=r"README.md has no place for results: put <!-- results"):
        outside(text)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("manifest.json", "manifest.json is missing: run `make report RUN=made-up`"),
        ("summary.json", "run made-up: No decision: no notebook of this run has written"),
        ("sweep_results.csv", "run made-up: No candidates: no notebook of this run has written"),
        ("pareto_frontier_latency.csv", "is missing: notebook 04_sweep makes it"),
        ("figures/frontier.png", "is missing: notebook 04_sweep makes it"),
    ],
)
def test_what_the_run_has_not_made_is_named_and_nothing_written(root, made, caplog, missing, words):
    path = made.path(missing)
    hidden = path.rename(path.with_name("hidden"))
    assert main(["readme", "--run", "made-up"]) == 2
    hidden.rename(path)
    assert words in caplog.text
    assert (root / "README.md").read_text() == README
    assert not (root / "docs").exists()


def test_a_run_that_is_not_there_is_named_with_those_that_are(root, caplog):
    assert main(["readme", "--run", "default"]) == 2
    assert "no run 'default'" in caplog.text
    assert "['made-up']" in caplog.text
