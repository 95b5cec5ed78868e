from pathlib import Path

import pytest

from edgeopt.reports.browser import find_browser, open_browser

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
