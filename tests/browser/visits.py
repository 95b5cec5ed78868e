"""A page in a browser, and what is asked of every one."""

from importlib.resources import files
from pathlib import Path

SIZES = {"phone": (390, 844), "desk": (1280, 900)}
# The theme's own frame is the theme's; style sheets cannot be read again from a file.
AXE = """axe.run(document.querySelector('article') ?? document,
    {resultTypes: ['violations'], preload: false})"""
SERIOUS = {"serious", "critical"}


class Visit:
    """An open page and what went wrong while it was open."""

    def __init__(self, page, path: Path) -> None:
        self.page, self.problems = page, []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._console)
        page.on("request", self._request)
        page.on("dialog", self._dialog)
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

    def _dialog(self, dialog) -> None:
        self.problems.append(f"ran a script: {dialog.message}")
        dialog.dismiss()

    def findings(self) -> list[str]:
        """Serious and critical findings of axe-core, with all folded parts open."""
        # The theme fades parts in as they open; half faded in, their contrast is too low.
        self.page.add_style_tag(
            content="* { animation: none !important; transition: none !important }"
        )
        self.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        self.page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
        found = self.page.evaluate(AXE)["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in SERIOUS]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def faults(opened: Visit, shot: Path) -> list[str]:
    """What is wrong with an open page: accessibility, width, errors; its picture is kept."""
    opened.page.screenshot(path=shot, full_page=True)
    overflow = opened.overflow()
    wide = [f"{overflow} pixels wider than the window"] if overflow else []
    return [*opened.findings(), *wide, *opened.problems]
