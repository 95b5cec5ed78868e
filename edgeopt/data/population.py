"""A data set before its roles are drawn, and the seeded, stratified ways to split it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgeopt.data.splits import SPLIT_BY_SEED, Split


@dataclass(frozen=True, eq=False)
class Population:
    """A data set before the draws: what may be trained on, what only judges.

    ``duplicates_dropped`` counts images left out of ``train`` because another role, or ``train``
    itself, already holds the same pixels. The rest is as in :class:`edgeopt.data.Splits`.
    """

    class_names: tuple[str, ...]
    checksum: str
    train: Split
    validation: Split
    test: Split
    duplicates_dropped: int = 0
    origin: str = SPLIT_BY_SEED
    left_out: tuple[str, ...] = ()

    def with_classes(self, class_names: Sequence[str]) -> "Population":
        """Put the classes into another order; which images have which role stays.

        Raises ``ValueError`` unless the names are those of the classes, each once.
        """
        if sorted(class_names) != sorted(self.class_names):
            known, given = set(self.class_names), set(class_names)
            raise ValueError(
                f"class_names is {list(class_names)}; unknown: {sorted(given - known) or 'none'}, "
                f"missing: {sorted(known - given) or 'none'}; allowed: each of "
                f"{sorted(known)} once"
            )
        rank = torch.tensor([list(class_names).index(name) for name in self.class_names])
        roles = {
            role: replace(split, labels=rank[split.labels])
            for role in ("train", "validation", "test")
            for split in [getattr(self, role)]
        }
        return replace(self, class_names=tuple(class_names), **roles)


def stratified_order(labels: Tensor, *, seed: int) -> np.ndarray:
    """Shuffle so that every prefix holds each class in proportion, up to rounding.

    The i-th of a class's n images sorts by (i + 1/2) / n.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    labels_shuffled = labels.numpy()[shuffled]
    quantile = np.empty(len(labels))
    for label in np.unique(labels_shuffled):
        of_class = np.flatnonzero(labels_shuffled == label)
        quantile[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return shuffled[np.argsort(quantile, kind="stable")]


def split_off(source: Split, count: int, *, seed: int) -> tuple[Split, Split]:
    """Split into ``count`` stratified images and the rest."""
    order = stratified_order(source.labels, seed=seed)
    return source.select(order[:count]), source.select(order[count:])


def without_duplicates(source: Split, *, held_out: Iterable[Split] = ()) -> Split:
    """Keep the first image of each content, and none that a held-out split holds as well."""
    seen = {content for split in held_out for content in split.contents()}
    kept = []
    for position, content in enumerate(source.contents()):
        if content not in seen:
            seen.add(content)
            kept.append(position)
    return source if len(kept) == len(source) else source.select(np.array(kept, dtype=np.int64))
