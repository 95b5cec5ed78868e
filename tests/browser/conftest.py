from pathlib import Path

import pytest

from edgeopt.reports.pages.browser import find_browser, open_browser
from tests.browser.visits import SIZES, Visit

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser():
    """Ends with the module: Playwright allows no second session beside an open one."""
    try:
        find_browser()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with open_browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def screenshots() -> Path:
    folder = Path(__file__).parents[2] / "reports" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
