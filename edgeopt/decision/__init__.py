"""Budgets, frontier, intervals, paired tests, gates, and the choice."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "answers": ["Answers", "class_shares", "share_interval"],
        "choice": ["Decision", "decide"],
        "gates": ["Constraints", "Gates", "rules"],
        "paired": ["paired_comparison"],
        "selection": ["accepted_mask", "apply_budgets", "frontier_twins", "pareto_frontier"],
        "statistics": ["frontier_probability", "hypervolume"],
    },
)
