"""DataFrame -> Axes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compression": [
            "diagnosis_bars",
            "filter_norms",
            "pruning_curves",
            "quantization",
            "recovery",
        ],
        "hardware": [
            "device_estimates",
            "drift",
            "latency_distribution",
            "layer_breakdown",
            "roofline",
        ],
        "quality": [
            "confusion_matrix",
            "lost_images",
            "per_class_change",
            "sample_images",
            "training_history",
        ],
        "scaling": ["scaling"],
        "search": ["latency_map", "searched_frontier"],
        "sweep": ["budgets", "energy_tiers", "frontier", "precision_ratios"],
    },
)
