"""Bounds on the numbers of a candidate, judged by estimate or by interval, and put into words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from edgeopt.schema import COLUMNS, quantity

MET, NOT_SETTLED, BROKEN = "met", "not settled", "broken"


@dataclass(frozen=True)
class Finding:
    """What a limit says of one candidate.

    ``shortfall`` is the miss as a share of the bound, 0 unless broken and infinite when the value
    is not known; ``text`` says it in words, empty when met.
    """

    verdict: str
    shortfall: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Limit:
    """A bound on one column, from above unless ``at_least``.

    ``class_column`` names the column that tells which class a per-class value belongs to.
    """

    column: str
    bound: float
    at_least: bool = False
    class_column: str = ""

    def estimate(self, row: pd.Series, *, settles: bool = True) -> Finding:
        """Judge one candidate by its value, which is met at best when that ``settles`` it."""
        missed = self.miss(row[self.column])
        text = self._describe(row[self.column], row.get(self.class_column))
        if missed:
            return Finding(BROKEN, missed, text)
        if settles:
            return Finding(MET)
        return Finding(NOT_SETTLED, text=f"{text}; it did not run with every seed")

    def judge(self, intervals: pd.DataFrame) -> Finding:
        """Judge one candidate by the ``intervals`` of its value.

        Broken is what lies beyond the bound with its whole interval, not settled what has the bound
        in its interval. Of several intervals (one a class) the worst decides.
        """
        near, far = ("high", "low") if self.at_least else ("low", "high")
        for verdict, end in ((BROKEN, near), (NOT_SETTLED, far)):
            misses = intervals[end].map(self.miss)
            if misses.max() > 0:
                worst = intervals.loc[misses.idxmax()]
                missed = self.miss(worst["value"]) if verdict == BROKEN else 0.0
                return Finding(verdict, missed, self._describe_interval(worst, end))
        return Finding(MET)

    def rule(self) -> tuple[str, str]:
        """Say what is judged and what is refused, in words."""
        side, bound = "below" if self.at_least else "above", quantity(self.column, self.bound)
        return COLUMNS[self.column].title.lower(), f"refused {side} {bound}"

    def miss(self, value: float) -> float:
        """By which share of the bound a value misses it: 0 when met, infinite when unknown."""
        if pd.isna(value):
            return math.inf
        gap = (self.bound - value) if self.at_least else (value - self.bound)
        if gap <= 0 or math.isclose(gap, 0, abs_tol=1e-12 * (1 + abs(self.bound))):
            return 0.0
        return gap / (abs(self.bound) or 1.0)

    def _describe(self, value: float, class_name: Any) -> str:
        """Say how far a value is, e.g. ``accuracy drop 6.00 points, allowed at most 5.00 points``.

        More digits are given where the two would read alike.
        """
        bound = quantity(self.column, self.bound)
        known = "is not available" if pd.isna(value) else quantity(self.column, value)
        if known == bound:
            known, bound = (quantity(self.column, v, exact=True) for v in (value, self.bound))
        return f"{self._title(class_name)} {known}, allowed {self._side} {bound}"

    def _describe_interval(self, worst: pd.Series, end: str) -> str:
        """Say where an interval ends, and how many images would settle what it leaves open."""
        reach = "at least" if end == "low" else "up to"
        text = (
            f"{self._title(worst['class_name'])} {quantity(self.column, worst['value'])} "
            f"({reach} {quantity(self.column, worst[end])}), "
            f"allowed {self._side} {quantity(self.column, self.bound)}"
        )
        if (end == "high") == self.at_least:
            return text
        return f"{text}; {_images_to_settle(worst, end, self.bound)}"

    @property
    def _side(self) -> str:
        return "at least" if self.at_least else "at most"

    def _title(self, class_name: Any) -> str:
        title = COLUMNS[self.column].title
        title = title[0].lower() + title[1:]
        named = isinstance(class_name, str) and class_name
        return f"{title} of class {class_name!r}" if named else title


def _images_to_settle(worst: pd.Series, end: str, bound: float) -> str:
    """How many images would settle a gate if the value stayed: intervals shrink by their root."""
    if worst.get("seeds", 1) > 1:  # what the seeds add does not shrink with more images
        return "more images and more seeds could settle it"
    distance = abs(worst["value"] - bound)
    if distance < 1e-12:
        return "no number of images settles what lies exactly on the gate"
    needed = worst["images"] * (abs(worst[end] - worst["value"]) / distance) ** 2
    needed = max(needed, worst["images"] + 1)
    digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    kind = f" of {worst['class_name']!r}" if worst["class_name"] else ""
    return f"about {math.ceil(needed / digits) * digits:,} images{kind} would settle it"


def findings(
    table: pd.DataFrame, limits: Sequence[Limit], intervals: pd.DataFrame | None = None
) -> list[dict[Limit, Finding]]:
    """Judge every row by every limit, by its intervals where there are any.

    A row without the intervals that others have did not run with every seed, and what its estimate
    meets is not settled.
    """
    own = {} if intervals is None else dict(list(intervals.groupby(["candidate", "gate"])))
    judged = {gate for _, gate in own}
    return [
        {
            limit: limit.judge(own[row["candidate"], limit.column])
            if (row["candidate"], limit.column) in own
            else limit.estimate(row, settles=limit.column not in judged)
            for limit in limits
        }
        for _, row in table.iterrows()
    ]


def texts(own: Mapping[Limit, Finding], verdict: str) -> str:
    """Say in words what has this verdict; of several limits on one column the first counts."""
    said: dict[str, str] = {}
    for limit, finding in own.items():
        if finding.verdict == verdict:
            said.setdefault(limit.column, finding.text)
    return "; ".join(said.values())
