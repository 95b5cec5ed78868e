"""How far int8 fell below its fp32 parent, and whether that is more than allowed."""

import math
from collections.abc import Mapping

QUALITIES = ("accuracy", "macro_f1")
ROUNDING = 1e-9  # of the subtraction; far below one image's worth of accuracy
ONE_SIDED_95 = 1.645  # standard errors


def quality_drop(own: Mapping[str, float], parent: Mapping[str, float]) -> float:
    """How far accuracy or, if that fell more, macro-F1 is below the parent's."""
    return max(parent[name] - own[name] for name in QUALITIES)


def fell(
    own: Mapping[str, float], parent: Mapping[str, float], *, max_drop: float, images: int
) -> bool:
    """Whether accuracy is more than ``max_drop`` below the parent's, or macro-F1 surely is.

    Macro-F1 says what accuracy does not, a class that pays for the mean, but hangs on fewer images:
    it counts where its fall is beyond the one-sided 95% bound of what the images with another
    answer, a share of ``1 - agreement``, change by chance.
    """
    chance = ONE_SIDED_95 * math.sqrt((1 - own["agreement"]) / images)
    accuracy, macro_f1 = (parent[name] - own[name] for name in QUALITIES)
    return max(accuracy, macro_f1 - chance) > max_drop + ROUNDING
