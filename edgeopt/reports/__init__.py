"""Executed notebooks -> pages, stamps and manifest."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "browser": ["open_browser"],
        "manifest": ["find_run", "read_manifest", "verify"],
        "pages": ["write_comparison"],
        "readme": ["write_readme"],
        "runner": ["find_notebooks", "make_report", "only_one", "write_back"],
        "stamps": ["INDEX"],
    },
)
