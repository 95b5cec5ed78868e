"""A headless Chromium, where one is installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def find_browser() -> str:
    """Path of the installed browser; ``FileNotFoundError`` names the programs looked for."""
    for path in filter(None, map(shutil.which, BROWSERS)):
        return path
    raise FileNotFoundError(f"no browser is on the path; looked for {', '.join(BROWSERS)}")


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """Start the installed browser without a window; it ends with the block."""
    from playwright.sync_api import sync_playwright

    options = {"executable_path": find_browser(), "args": QUIET}
    with sync_playwright() as session, session.chromium.launch(**options) as browser:
        yield browser
