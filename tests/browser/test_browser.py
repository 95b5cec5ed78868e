"""Every page of a run in a real browser: the pages of ``$EDGEOPT_BROWSER_RUN`` if it is set."""

import os
from importlib.resources import files
from pathlib import Path

import pytest

from edgeopt.reports.pages import write_comparison
from edgeopt.study.folder import RunFolder
from tests.browser.synthetic import synthetic_run, synthetic_sweep

SIZES = {"phone": (390, 844), "desk": (1280, 900)}
SERIOUS = {"serious", "critical"}
PAGES = ("index", "run", "notebook", "failed", "comparison")
CHOSEN = os.environ.get("EDGEOPT_BROWSER_RUN")


@pytest.fixture(scope="session")
def reports(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    first = synthetic_run(folder, "first")
    second = synthetic_run(folder, "second", sweep=synthetic_sweep(seed=1))
    write_comparison(first, second)
    return folder


@pytest.fixture(scope="session")
def pages(reports) -> dict[str, Path]:
    if CHOSEN:
        return {path.stem: path for path in sorted(Path(CHOSEN).resolve().glob("*.html"))}
    return {
        "index": reports / "index.html",
        "run": reports / "first/index.html",
        "notebook": reports / "first/01_baseline_training.html",
        "failed": reports / "first/02_pruning.html",
        "comparison": reports / "compare-first-second.html",
    }


class Visit:
    """An open page and what went wrong while it was open."""

    def __init__(self, page, path: Path) -> None:
        self.page, self.problems = page, []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._console)
        page.on("request", self._request)
        page.goto(path.as_uri())
        page.wait_for_function(
            "!document.getElementById('frontier') || document.querySelector('#frontier .main-svg')"
        )

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _request(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.problems.append(f"asked the network for {request.url}")

    def findings(self) -> list[str]:
        """Serious and critical findings of axe-core, with all folded parts open."""
        self.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        self.page.wait_for_timeout(100)
        self.page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in SERIOUS]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture
def visit(browser):
    contexts = []

    def open_page(path: Path, *, size: str = "desk", scheme: str = "light") -> Visit:
        width, height = SIZES[size]
        view = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=view, color_scheme=scheme))
        return Visit(contexts[-1].new_page(), path)

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["every page"] if CHOSEN else PAGES)
def test_a_page_is_sound(visit, pages, screenshots, name, size, scheme):
    for found, path in pages.items():
        if name not in (found, "every page"):
            continue
        opened = visit(path, size=size, scheme=scheme)
        shot = screenshots / f"{found}-{size}-{scheme}.png"
        opened.page.screenshot(path=shot, full_page=True)
        assert shot.stat().st_size > 0
        assert opened.findings() == []
        assert opened.overflow() == 0
        assert opened.problems == []


@pytest.fixture
def explorer(visit, pages):
    return visit(pages["index" if CHOSEN else "run"]).page


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


@pytest.mark.skipif(bool(CHOSEN), reason="needs the made-up run")
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


@pytest.mark.skipif(bool(CHOSEN), reason="needs the made-up run")
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


@pytest.mark.skipif(bool(CHOSEN), reason="needs the made-up run")
def test_two_thousand_candidates_are_listed_in_part_and_then_in_full(visit, tmp_path):
    levels = tuple(level / 20 for level in range(20))
    run = synthetic_run(tmp_path, "big", sweep=synthetic_sweep(levels, copies=10))
    page = visit(RunFolder(run.root).path("index.html")).page
    assert len(listed(page)) == 50
    assert page.inner_text("#count") == "2200 of 2200 candidates, the first 50 listed"
    page.click("#show-all")
    assert len(listed(page)) == 2200
