"""Start a command of edgeopt: ``python -m edgeopt``."""

import os
import signal
import sys
from typing import Any

from edgeopt.system import fork_server, require_limits


def end(*_: Any) -> None:
    """End on an interrupt while libraries are imported, some of which would ignore it."""
    os.write(2, b"interrupted; nothing has begun\n")
    os._exit(130)


if __name__ == "__main__":
    if sys.argv[1:2] in (["report"], ["check"]):
        try:
            require_limits()  # first: imports end in a traceback where there is too little
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(2)
    before = signal.signal(signal.SIGINT, end)
    if sys.argv[1:2] == ["report"]:
        fork_server()  # imports for the notebooks while this process does for itself
    from edgeopt.reports.commands import main

    signal.signal(signal.SIGINT, before)
    sys.exit(main())
