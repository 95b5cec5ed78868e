"""What everything runs on: files, processes, CPU, packages, kept results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"torchvision"},
    submod_attrs={
        "files": [
            "REPORTS_VARIABLE",
            "file_sha256",
            "folder_bytes",
            "package_sha256",
            "project_root",
            "replacing",
            "write_atomically",
        ],
        "parallel.fork_server": ["end_with_parent", "fork_server", "share_server"],
        "host": [
            "HOST_IDENTITY",
            "RUNTIME_GROUP",
            "available_bytes",
            "environment_facts",
            "host_facts",
            "status_bytes",
            "usable_cores",
        ],
        "int8": ["Int8Scheme", "int8_scheme"],
        "limits": ["require_limits"],
        "parallel.opening": ["open_scheduler"],
        "parallel.scheduler": ["SchedulerError", "check_scheduler"],
        "source": ["source_digest"],
        "store": ["Store"],
        "strict_yaml": ["load_yaml", "shortened"],
        "upstream": [
            "RuntimeUnavailable",
            "import_extra",
            "known_noise_silenced",
            "native_stderr_logged",
        ],
        "parallel.workers": ["ByValue", "process_pool", "run_in_order", "run_when_ready"],
    },
)
