"""Every page in a real browser: a made-up run with all that can happen."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from edgeopt.reports.runner import make_comparison
from tests.browser.synthetic import synthetic_run, synthetic_sweep
from tests.browser.visits import faults

PAGES = ("runs", "front", "notebook", "failed", "search", "comparison")


@pytest.fixture(scope="session")
def reports(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    first = synthetic_run(folder, "first")
    second = synthetic_run(folder, "second", sweep=synthetic_sweep(seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_REPORTS", str(folder))
        assert make_comparison(first, second)
    return folder


@pytest.fixture(scope="session")
def pages(reports) -> dict[str, Path]:
    return {
        "runs": reports / "index.html",
        "front": reports / "first/index.html",
        "notebook": reports / "first/01_baseline_training.html",
        "failed": reports / "first/02_pruning.html",
        "search": reports / "first/search.html",
        "comparison": reports / "compare-first-second/index.html",
    }


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desk", "light")])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_sound(visit, pages, screenshots, name, size, scheme):
    opened = visit(pages[name], size=size, scheme=scheme)
    assert faults(opened, screenshots / f"{name}-{size}-{scheme}.png") == []


@pytest.fixture
def explorer(visit, pages):
    return visit(pages["front"]).page


def listed(page) -> list[str]:
    return page.locator("#candidates tbody th").all_inner_texts()


def drawn(page) -> int:
    return page.locator("#frontier .scatterlayer path.point").count()


def axis_type(page) -> str:
    return page.evaluate("document.getElementById('frontier').layout.xaxis.type")


def test_filters_are_reached_and_used_by_keyboard_alone(explorer):
    before = listed(explorer)
    explorer.focus("#explorer input")
    for _ in range(60):
        explorer.keyboard.press("Tab")
        if explorer.evaluate("document.activeElement.value") == "onnxruntime":
            break
    explorer.keyboard.press("Space")
    after = listed(explorer)
    assert [name for name in before if "onnxruntime" not in name] == after
    assert len(after) < len(before)


def test_filters_hold_for_the_chart_and_the_table_alike(explorer):
    everything = drawn(explorer)
    explorer.uncheck("input[name=precision][value=fp32]")
    explorer.uncheck("input[name=precision][value=fp16]")  # one of them failed: it is not drawn
    explorer.uncheck("input[name=runtime][value=torch]")
    assert listed(explorer)
    assert not any("fp32" in name or "-torch-" in name for name in listed(explorer))
    assert 0 < drawn(explorer) < everything
    assert drawn(explorer) == len(listed(explorer))


def test_words_and_the_budget_filter_too(explorer):
    search = explorer.locator("#explorer input[type=search]")
    search.fill("OPENVINO int8")
    assert listed(explorer)
    assert all("openvino-int8" in name for name in listed(explorer))
    search.fill("no such candidate")
    assert listed(explorer) == []
    assert "No candidate fits these filters" in explorer.inner_text("#candidates tbody")
    search.fill("")
    explorer.check("input[name=fits]")
    standings = explorer.locator("#candidates td.standing").all_inner_texts()
    assert standings
    assert not {"over budget", "failed"} & {*standings}


def test_a_heading_sorts_both_ways(explorer):
    head = explorer.locator("#candidates th[data-name=accuracy]")
    place = explorer.evaluate(
        "[...document.querySelectorAll('#candidates th[data-name]')]"
        ".findIndex((head) => head.dataset.name === 'accuracy') + 1"
    )

    def numbers():
        texts = explorer.locator(f"#candidates tbody tr > :nth-child({place})").all_inner_texts()
        return [float(text) for text in texts if text != "\N{EN DASH}"]

    head.click()  # DataTables sorts after the click has returned
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert numbers() == sorted(numbers())
    head.click()
    expect(head).to_have_attribute("aria-sort", "descending")
    assert numbers() == sorted(numbers(), reverse=True)


def test_the_axes_can_be_chosen(explorer):
    explorer.select_option("select[name=x]", "memory_mb")
    explorer.select_option("select[name=y]", "macro_f1")
    titles = explorer.locator("#frontier .infolayer text.xtitle, #frontier text.ytitle")
    assert titles.all_text_contents() == ["Weights (KiB)", "Macro F1 (%)"]
    explorer.uncheck("input[name=log]")
    assert axis_type(explorer) == "linear"


def test_what_was_chosen_is_in_the_address_and_comes_back(explorer):
    explorer.uncheck("input[name=runtime][value=torch]")
    explorer.uncheck("input[name=log]")
    explorer.select_option("select[name=x]", "memory_mb")
    explorer.locator("#explorer input[type=search]").fill("int8")
    head = explorer.locator("#candidates th[data-name=accuracy]")
    head.click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    chosen = listed(explorer)
    explorer.reload()
    explorer.wait_for_selector("#frontier .main-svg")
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert listed(explorer) == chosen
    assert not explorer.is_checked("input[name=runtime][value=torch]")
    assert axis_type(explorer) == "linear"
    assert explorer.locator("#frontier text.xtitle").text_content() == "Weights (KiB)"


def test_hovering_a_point_tells_its_numbers(explorer):
    explorer.locator("#frontier").scroll_into_view_if_needed()
    explorer.locator("#frontier path.point").last.hover(force=True)
    words = explorer.locator("#frontier .hovertext").text_content()
    assert "Latency, median (ms)" in words


def test_a_row_shows_its_point_and_a_point_its_row(explorer):
    explorer.locator("#candidates tbody tr").first.click(position={"x": 5, "y": 5})
    name = listed(explorer)[0]
    assert explorer.locator("#candidates tr.marked th").all_inner_texts() == [name]
    assert name in explorer.locator("#frontier .hovertext").text_content()
    explorer.locator("#frontier").scroll_into_view_if_needed()
    box = explorer.locator("#frontier path.point").last.bounding_box()
    explorer.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert explorer.locator("#candidates tr.marked").count() == 1


def test_the_line_joins_the_accepted_that_nothing_beats(explorer):
    line = explorer.evaluate("document.getElementById('frontier').data[0]")
    data = explorer.evaluate("JSON.parse(document.getElementById('explorer-data').textContent)")
    columns = data["columns"]
    places = zip(columns["latency_p50_ms"], columns["accuracy"], data["accepted"], strict=True)
    fit = [(x, y) for x, y, accepted in places if accepted and x is not None]
    best = {
        (x, y) for x, y in fit if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in fit)
    }
    assert set(zip(line["x"], line["y"], strict=True)) == best


def test_names_with_html_are_text_in_the_table_and_the_chart(visit, tmp_path):
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
    assert opened.page.title() != "run"
    assert opened.problems == []


def test_two_thousand_candidates_are_listed_in_pages(visit, tmp_path):
    levels = tuple(level / 20 for level in range(20))
    run = synthetic_run(tmp_path, "big", sweep=synthetic_sweep(levels, copies=10))
    page = visit(run.path("index.html")).page
    assert len(listed(page)) == 50
    assert "2,200 candidates" in page.inner_text("#explorer .dt-info")
    page.click("#explorer .dt-paging button.next")
    assert len(listed(page)) == 50


def test_search_finds_words_of_a_chapter_without_a_server(visit, pages):
    page = visit(pages["search"]).page
    page.goto(f"{pages['search'].as_uri()}?q=picture")
    page.wait_for_selector("#search-results li")
    assert "Baseline training" in page.inner_text("#search-results")


def test_text_in_figures_is_legible_on_a_phone(visit, pages):
    page = visit(pages["notebook"], size="phone").page
    shown = page.evaluate(
        "[...document.querySelectorAll('figure.result img')]"
        ".map((image) => image.width / image.getAttribute('width'))"
    )
    # drawn with text of 10 points or more, that is 13 px: never scaled below 11
    assert shown
    assert min(shown) >= 11 / 13.3


def test_the_front_page_fits_on_paper(visit, pages):
    page = visit(pages["front"]).page
    page.emulate_media(media="print")
    hidden = page.evaluate(
        "getComputedStyle(document.querySelector('#explorer form')).display === 'none'"
    )
    assert hidden
