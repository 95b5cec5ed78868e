"""Networks by name, their weights, and training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "canonical": ["fold_batch_norm", "layers_as_modules"],
        "channel_groups": ["FIXED", "ChannelGroups", "channel_groups"],
        "networks": [
            "SmallCNN",
            "build_model",
            "check_network",
            "input_channels",
            "factory_digest",
            "network_digest",
            "set_deterministic",
        ],
        "same_function": ["require_same_function"],
        "tracing": [
            "channel_axis",
            "operation_of",
            "submodule_of",
            "trace",
            "with_readers",
        ],
        "training": ["evaluate", "fit", "fit_while_rising", "predict_logits", "train_model"],
        "weights": ["dump_weights", "load_weights"],
    },
)
