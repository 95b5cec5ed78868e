"""Where a measurement is made: the bundle that goes there, the way there, what comes back."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "archive": ["write_archive"],
        "bundle": ["Task", "write_bundle"],
        "device": [
            "HOST",
            "WHEELS",
            "Device",
            "DeviceError",
            "check_device",
        ],
        "measuring": ["device_named", "measure_on"],
        "results": [
            "EMULATED",
            "DeviceResults",
            "ResultsError",
            "facts_table",
            "read_results",
            "results_of",
        ],
    },
)
