"""The folder of one run: files written whole or not at all, and figures that carry their words."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import jsonschema
import pandas as pd

from edgeopt.study.layout import DECIDED, RIGHT_ANSWERS, SUMMARY, SWEEP, maker
from edgeopt.system import REPORTS_VARIABLE, file_sha256, project_root, write_atomically

if TYPE_CHECKING:
    from IPython.display import Image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ASSETS = Path(__file__).parents[1] / "assets"
FIGURE_DPI = 192
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # how a spreadsheet's formula begins, or our mark


def reports_folder() -> Path:
    """Folder of all runs: ``$EDGEOPT_REPORTS``, else ``reports``, both seen from the project."""
    folder = Path(os.environ.get(REPORTS_VARIABLE) or "reports")
    return folder if folder.is_absolute() else project_root() / folder


def check_schema(value: Any, *, name: str) -> None:
    """Check a JSON value against ``assets/<stem>.schema.json``, where there is one.

    ``ValueError`` names the file, the place in it and what is wrong there.
    """
    schema = ASSETS / f"{Path(name).stem}.schema.json"
    if not schema.is_file():
        return
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    problem = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if problem is not None:
        raise ValueError(f"{name} at {problem.json_path}: {problem.message}")


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV that :meth:`RunFolder.write_table` wrote; a class may be called ``nan``."""
    return _each_text(pd.read_csv(path, keep_default_na=False, na_values=[""]), _as_it_was)


def _each_text(df: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """Change the texts of a table, headings too."""
    texts = {name: df[name].map(change) for name in df.select_dtypes(["object", "string"])}
    return df.assign(**texts).rename(columns=change)


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _as_it_was(value: Any) -> Any:
    quoted = isinstance(value, str) and value.startswith("'") and value[1:].startswith(FORMULA)
    return value[1:] if quoted else value


def to_json(value: Any) -> Any:
    """Replace what JSON cannot hold: NumPy scalars and tuples; NaN and infinity by null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class RunFolder:
    """The folder that the notebooks of one run hand over through."""

    root: Path

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.root.name

    def path(self, name: str) -> Path:
        """Where ``name`` lies, e.g. ``artifacts/base.onnx``; never outside of the run's folder."""
        parts = PurePosixPath(name)
        if not parts.parts or parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"file name is {name!r}; allowed: a relative path inside {self.root}")
        return self.root / parts

    def folder(self, name: str) -> Path:
        """Return a sub-folder, made when it is not there."""
        folder = self.path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def require(self, name: str) -> Path:
        """Path of a file that an earlier notebook wrote.

        ``FileNotFoundError`` names the notebook that makes the file and the commands that run it;
        ``ValueError`` for a missing file that :mod:`edgeopt.study.layout` does not list.
        """
        path = self.path(name)
        if path.exists():
            return path
        made_by = maker(name)
        raise FileNotFoundError(
            f"{path} is missing: notebook {made_by} makes it. Run `make report RUN={self.name}`, "
            f"or that notebook alone: `papermill --log-level ERROR notebooks/{made_by}.ipynb "
            f"{self.root / made_by}.ipynb -f params/{self.name}.yaml`"
        )

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file whole or not at all."""
        return write_atomically(self.path(name), content)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file, checked first against the schema of that name if there is one."""
        value = to_json(value)
        check_schema(value, name=name)
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        return self.write_bytes(name, f"{text}\n".encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file that an earlier notebook wrote."""
        return json.loads(self.require(name).read_text(encoding="utf-8"))

    def write_table(self, name: str, df: pd.DataFrame) -> pd.DataFrame:
        """Write a table as CSV without its index, and return it.

        Text that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP
        advises (https://owasp.org/www-community/attacks/CSV_Injection).
        """
        inert = _each_text(df, _inert)
        self.write_bytes(name, inert.to_csv(index=False, lineterminator="\n").encode())
        return df

    def read_table(self, name: str) -> pd.DataFrame:
        """Read a table that an earlier notebook wrote."""
        return read_table(self.require(name))

    @property
    def taken_in(self) -> list[str]:
        """Devices whose results were taken in since the run has decided as it does now.

        Other gates, budgets, images or measurements of the run make them results of another one.
        """
        there = [path.parent for path in sorted(self.root.glob(f"devices/*/{DECIDED}"))]
        own = self.decision_digests if there else {}
        return [p.name for p in there if self.read_json(f"devices/{p.name}/{DECIDED}") == own]

    @property
    def decision_digests(self) -> dict[str, str]:
        """SHA-256 of the files that hold what the run has decided, and on what."""
        return {name: file_sha256(self.require(name)) for name in (SUMMARY, RIGHT_ANSWERS, SWEEP)}

    def read_taken_in(self, name: str) -> list[pd.DataFrame]:
        """Read a table of every device whose results were taken in."""
        return [read_table(self.path(f"devices/{device}/{name}")) for device in self.taken_in]

    def read_sweep(self, device: str = "") -> pd.DataFrame:
        """Read the candidates as they were measured on a device that was measured, or decides."""
        table = self.read_table(SWEEP)
        known = device if device in {*table["device"]} else table["device"].iloc[0]
        return table[table["device"] == known].reset_index(drop=True)

    def save_figure(
        self, name: str, ax: "Axes", *, alt: str, numbers: pd.DataFrame | None = None
    ) -> "Image":
        """Write ``figures/<name>.png`` from the figure of ``ax``, and close it.

        ``numbers``, the values drawn, go to ``figures/<name>.csv``; pages show them beside the
        figure. The ground is transparent. Returns the picture for the notebook to display; the alt
        text stays with it.
        """
        from IPython.display import Image
        from matplotlib import pyplot as plt

        if not alt.strip():
            raise ValueError(f"figure {name!r} has no alt text; say in a sentence what it shows")
        picture = _draw(ax.figure, alt=alt)
        plt.close(ax.figure)
        if numbers is not None:
            self.write_table(f"figures/{name}.csv", numbers)
        self.write_bytes(f"figures/{name}.png", picture)
        width = int(ax.figure.get_figwidth() * 96)
        return Image(picture, format="png", width=width, alt=alt, metadata={"figure": name})


def _draw(figure: "Figure", *, alt: str) -> bytes:
    """Draw a PNG in 256 colours, which takes a third of the bytes, with its alt text."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    drawn, few, words = BytesIO(), BytesIO(), PngInfo()
    figure.draw_without_rendering()  # texts beside the axes get their room in the second pass
    figure.savefig(drawn, format="png", dpi=FIGURE_DPI, transparent=True)
    words.add_itxt("Description", alt)
    method = Image.Quantize.FASTOCTREE  # the one that keeps transparency
    Image.open(drawn).quantize(256, method=method).save(few, "png", pnginfo=words, optimize=True)
    return few.getvalue()


def open_run(name: str, *, root: Path | None = None) -> RunFolder:
    """Open the folder of run ``name``, making it when it is not there.

    ``root`` is the folder of all runs; by default :func:`reports_folder`. ``ValueError`` when
    ``name`` is not a plain folder name, ``PermissionError`` when the folder cannot be written.
    """
    if name in ("", ".", "..") or PurePosixPath(name).name != name:
        raise ValueError(f"run name is {name!r}; allowed: a folder name without slashes")
    folder = (root or reports_folder()) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the report folder {folder}: {error.strerror}"
        raise PermissionError(message) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write in the report folder {folder}: check its permissions")
    return RunFolder(folder)
