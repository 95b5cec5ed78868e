"""An open run: its parameters, its folder, its networks and their images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks": ["check_parameters", "check_run"],
        "folder": [
            "FIGURE_DPI",
            "RunFolder",
            "check_schema",
            "open_run",
            "read_table",
            "reports_folder",
        ],
        "layout": ["STORE", "needed_by"],
        "study": ["Study", "open_study"],
        "tables": ["cell_text", "column_heading", "table_html", "use_style"],
    },
)
