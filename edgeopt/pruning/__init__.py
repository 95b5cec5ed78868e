"""Network -> smaller network: whole channels, and what reads them, are removed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "channels": [
            "channel_importance",
            "count_macs",
            "prune_channels",
            "prune_to_widths",
            "structured_channel_prune",
        ],
        "groups": [
            "LayerChannels",
            "channel_widths",
            "checked_choices",
            "layer_channels",
            "width_steps",
        ],
        "probing": ["last_layer"],
    },
)
