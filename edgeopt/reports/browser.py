"""A headless Chromium, where one is installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


def find_browser() -> Path:
    """Path of the installed browser.

    Raises
    ------
    FileNotFoundError
        Naming the programs looked for.
    """
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        raise FileNotFoundError(f"no browser is on the path; looked for {', '.join(BROWSERS)}")
    return Path(found[0])


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """Start the installed browser without a window; it ends with the block."""
    from playwright.sync_api import sync_playwright

    path = find_browser()
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()
