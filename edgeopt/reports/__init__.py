"""Executed notebooks -> pages, stamps and manifest."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "browser": ["open_browser"],
        "card": ["decision_card", "role_table", "warnings_box"],
        "comparison": ["compare_runs"],
        "explorer": ["explorer"],
        "manifest": ["find_run", "read_manifest", "verify"],
        "offline": ["take_results", "write_run_bundle"],
        "readme": ["write_readme"],
        "results": ["all_files", "parameter_table", "provenance_table", "read_results"],
        "runner": ["make_comparison", "make_report", "remake_devices_chapter"],
        "ship": ["hand_off"],
        "site": ["saved_figure"],
    },
)
