"""Budgets, frontier, intervals, paired tests, gates, and the choice."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "answers": ["Answers", "class_shares", "share_interval"],
        "budgets": ["accepted_mask", "apply_budgets"],
        "choice": ["Decision", "decide"],
        "frontier": [
            "frontier_probability",
            "frontier_twins",
            "hypervolume",
            "hypervolume_gain",
            "pareto_frontier",
        ],
        "gates": ["Constraints", "Gates"],
        "paired": ["paired_comparison"],
    },
)
