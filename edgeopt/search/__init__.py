"""Channels and bits by the clock: what networks of other widths cost, and which are worth it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bits": ["faster_in_float"],
        "layer_tables": ["LayerMap", "count_weights", "layer_map", "network_layers"],
        "network_map": ["LatencyMap", "latency_map"],
        "spec": ["SearchSpec"],
        "trials": ["BITS", "Space", "explore", "promoted", "record"],
        "timing": ["Bench", "Timed", "time_networks"],
    },
)
