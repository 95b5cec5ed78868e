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
            "load_small_cnn",
            "network_digest",
            "set_deterministic",
        ],
        "probing": [
            "last_layer",
            "module_named",
            "module_without_graph",
            "require_pixels",
            "run_named",
        ],
        "training": ["evaluate", "fit", "predict_logits", "train_model"],
        "weights": ["dump_weights", "load_weights"],
    },
)
