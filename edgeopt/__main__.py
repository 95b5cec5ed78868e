"""Start a command of edgeopt: ``python -m edgeopt``."""

import os
import signal
import sys
from typing import Any

from edgeopt.system import fork_server


def end(*_: Any) -> None:
    """End on an interrupt while libraries are imported, some of which would ignore it."""
    os.write(2, b"interrupted; nothing has begun\n")
    os._exit(130)


if __name__ == "__main__":
    before = signal.signal(signal.SIGINT, end)
    if sys.argv[1:2] == ["report"]:
        fork_server()  # imports for the notebooks while this process does for itself
    from edgeopt.reports.commands import main

    signal.signal(signal.SIGINT, before)
    sys.exit(main())
