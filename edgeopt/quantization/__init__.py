"""Network -> network in fp16 or int8, or one that quantizes well."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bias_correction": ["correct_bias", "rounded_activations"],
        "inserted": ["float_modules", "inserted_multiplications"],
        "planting": ["plant_specimen"],
        "rescaling": ["OUTLIER", "barrier_groups", "equalize"],
        "variants": [
            "DEFAULT_ENGINE",
            "QuantizationError",
            "TORCH_PRECISIONS",
            "calibration_images",
            "first_batches",
            "precision_variant",
            "quantization_aware_train",
            "quantized_engine",
            "to_fp16",
            "to_int8",
            "two_or_more",
            "xnnpack_quantizer",
        ],
    },
)
