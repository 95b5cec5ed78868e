"""One file a runtime, and the contract that all of them keep."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "contract": [
            "Artifact",
            "ArtifactError",
            "CALIBRATIONS",
            "ExportError",
            "Int8Options",
            "Operation",
            "Runtime",
            "Session",
        ],
        "export": ["export_artifact", "simulated_classes"],
        "integer_share": ["executed_graph", "labelled", "verify_label"],
        "formats.litert_micro": ["write_header"],
        "onnxruntime": ["session_options"],
        "registry": ["RUNTIMES", "load_session", "registered", "runtime_named"],
        "torch": ["eager_operations"],
    },
)
