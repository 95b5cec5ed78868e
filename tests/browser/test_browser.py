"""Every page in a real browser: a made-up run with all that can happen."""

from pathlib import Path

import pytest
from edgeopt.reports.pages import write_comparison

from edgeopt.study.folder import RunFolder
from tests.browser.synthetic import synthetic_run, synthetic_sweep
from tests.browser.visits import SIZES, faults

PAGES = ("index", "run", "notebook", "failed", "comparison")


@pytest.fixture(scope="session")
def reports(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    first = synthetic_run(folder, "first")
    second = synthetic_run(folder, "second", sweep=synthetic_sweep(seed=1))
    write_comparison(first, second)
    return folder


@pytest.fixture(scope="session")
def pages(reports) -> dict[str, Path]:
    return {
        "index": reports / "index.html",
        "run": reports / "first/index.html",
        "notebook": reports / "first/01_baseline_training.html",
        "failed": reports / "first/02_pruning.html",
        "comparison": reports / "compare-first-second.html",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_sound(visit, pages, screenshots, name, size, scheme):
    opened = visit(pages[name], size=size, scheme=scheme)
    assert faults(opened, screenshots / f"{name}-{size}-{scheme}.png") == []


@pytest.fixture
def explorer(visit, pages):
    return visit(pages["run"]).page


def listed(page) -> list[str]:
    return page.locator("#candidates tbody th").all_inner_texts()


def drawn(page) -> int:
    return page.locator("#frontier .scatterlayer path.point").count()


def test_filters_are_reached_and_used_by_keyboard_alone(explorer):
    before = listed(explorer)
    for _ in range(60):
        explorer.keyboard.press("Tab")
        if explorer.evaluate("document.activeElement.value") == "onnxruntime":
            break
    explorer.keyboard.press("Space")
    after = listed(explorer)
    assert [name for name in before if "onnxruntime" not in name] == after
    assert len(after) < len(before)


def test_filters_hold_for_the_plot_and_the_table_alike(explorer):
    everything = drawn(explorer)
    explorer.uncheck("input[name=precision][value=fp32]")
    explorer.uncheck("input[name=precision][value=bf16]")  # fails on a CPU without it: not drawn
    explorer.uncheck("input[name=runtime][value=torch]")
    assert listed(explorer)
    assert not any("fp32" in name or "-torch-" in name for name in listed(explorer))
    assert 0 < drawn(explorer) < everything
    assert drawn(explorer) == len(listed(explorer))


def test_words_and_the_budget_filter_too(explorer):
    explorer.fill("#search", "OPENVINO int8")
    assert listed(explorer)
    assert all("openvino-int8" in name for name in listed(explorer))
    explorer.fill("#search", "no such candidate")
    assert listed(explorer) == []
    assert explorer.inner_text("#count").startswith("0 of ")
    explorer.fill("#search", "")
    explorer.check("#only-accepted")
    assert set(explorer.locator("#candidates td:nth-child(2)").all_inner_texts()) <= {
        "eligible",
        "refused",
    }


def test_a_heading_sorts_both_ways_with_the_unknown_last(explorer):
    head = explorer.locator("th[data-key=accuracy]")
    column = explorer.evaluate("DATA.columns.findIndex((c) => c.key === 'accuracy')") + 1

    def numbers():
        texts = explorer.locator(f"#candidates td:nth-child({column})").all_inner_texts()
        return [float(text) for text in texts if text != "\N{EN DASH}"]

    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    assert explorer.locator("th[aria-sort]").count() == 1


def test_the_axes_can_be_chosen(explorer):
    explorer.select_option("#x-axis", "memory_mb")
    explorer.select_option("#y-axis", "macro_f1")
    titles = explorer.locator("#frontier .infolayer text.xtitle, #frontier text.ytitle")
    assert titles.all_text_contents() == ["Weights (KiB)", "Macro F1 (%)"]
    explorer.uncheck("#log-x")
    assert explorer.evaluate("document.getElementById('frontier').layout.xaxis.type") == "linear"


def test_hovering_a_point_tells_its_numbers(explorer):
    explorer.uncheck("#intervals")
    explorer.locator("#frontier").scroll_into_view_if_needed()
    explorer.locator("#frontier path.point").last.hover(force=True)
    words = explorer.locator("#frontier .hovertext").text_content()
    assert "Latency, median (ms)" in words


def test_the_line_joins_the_accepted_that_nothing_beats(explorer):
    line = explorer.evaluate("document.getElementById('frontier').data[0]")
    points = explorer.evaluate(
        "names.map((_, i) => [DATA.values.latency_p50_ms[i], DATA.values.accuracy[i],"
        " DATA.values.accepted[i]])"
    )
    fit = [(x, y) for x, y, accepted in points if accepted and x is not None]
    best = {
        (x, y) for x, y in fit if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in fit)
    }
    assert set(zip(line["x"], line["y"], strict=True)) == best


def test_names_with_html_are_text_in_the_table_and_the_plot(visit, tmp_path):
    nasty = "<img src=x onerror=\"document.title='run'\">"
    sweep = synthetic_sweep(levels=(0.0,))
    sweep.loc[1, "candidate"] = nasty
    synthetic_run(tmp_path, "nasty", sweep=sweep)
    opened = visit(tmp_path / "nasty/index.html")
    assert nasty in listed(opened.page)
    hover = opened.page.evaluate(
        "document.getElementById('frontier').data.flatMap((t) => t.text || [])"
    )
    assert not any("<img" in text for text in hover)
    assert "run" not in opened.page.title().split()[0]
    assert opened.problems == []


def test_two_thousand_candidates_are_listed_in_part_and_then_in_full(visit, tmp_path):
    levels = tuple(level / 20 for level in range(20))
    run = synthetic_run(tmp_path, "big", sweep=synthetic_sweep(levels, copies=10))
    page = visit(RunFolder(run.root).path("index.html")).page
    assert len(listed(page)) == 50
    assert page.inner_text("#count") == "2200 of 2200 candidates, the first 50 listed"
    page.click("#show-all")
    assert len(listed(page)) == 2200
