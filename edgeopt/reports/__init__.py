"""Executed notebooks -> pages, stamps and manifest; and the commands of edgeopt."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pages.browser": ["open_browser"],
        "pages.card": ["decision_card", "role_table", "warnings_box"],
        "pages.comparison": ["compare_runs"],
        "pages.explorer": ["explorer"],
        "pages.ship": ["hand_off"],
        "records.manifest": ["find_run", "verify"],
        "records.results": ["all_files", "parameter_table", "provenance_table", "read_results"],
        "site": ["saved_figure"],
    },
)
