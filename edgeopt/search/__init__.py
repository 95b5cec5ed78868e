"""Channels and bits by the clock: what networks of other widths cost, and which are worth it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layer_tables": ["LayerMap"],
        "maps": ["whole_maps"],
        "network_map": ["LatencyMap"],
        "stages": ["finalists", "one_epoch_accuracy", "prepare_finalists", "search_space"],
        "trials": ["explore", "promoted", "record"],
    },
)
