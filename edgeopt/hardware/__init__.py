"""Where the time goes, what the machine could do, and what other devices would."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ceilings": ["configure_ceilings", "measure_ceilings"],
        "devices": ["estimate_on_devices", "load_devices"],
        "layers": ["count_layers", "measure_networks"],
        "profiles": ["operator_table", "profile_candidates"],
        "roofline": ["place_on_roofline"],
        "tradeoffs": ["precision_ratios", "precision_tradeoff_table"],
    },
)
