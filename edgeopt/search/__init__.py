"""Channels and bits by the clock: what networks of other widths cost, and which are worth it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layer_tables": ["LayerMap", "layer_map"],
        "network_map": ["LatencyMap", "latency_map"],
        "timing": ["Bench", "time_networks"],
    },
)
