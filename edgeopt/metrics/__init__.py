"""What a candidate is worth and what it costs: quality, latency, memory, energy."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "activations": ["artifact_activation_bytes"],
        "conditions": ["disturbance"],
        "counters": ["read_counters"],
        "energy": [
            "energy_model_j",
            "energy_proxy_j",
            "measured_energy_j",
            "measured_energy_unavailable",
        ],
        "latency": [
            "latency_ratios",
            "latency_statistics",
            "UNDISTURBED",
            "resampled_quantiles",
        ],
        "quality": [
            "confusion_table",
            "per_class_table",
            "quality_row",
            "wilson_interval",
        ],
        "rounds": ["Measurement", "measure_latency"],
    },
)
