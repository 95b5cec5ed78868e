"""Networks by name, their weights, and training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "networks": [
            "SmallCNN",
            "build_model",
            "check_network",
            "input_channels",
            "network_digest",
            "set_deterministic",
        ],
        "training": ["evaluate", "fit", "predict_logits", "train_model"],
        "weights": ["dump_weights", "load_weights"],
    },
)
