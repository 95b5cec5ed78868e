"""Start a command of edgeopt: ``python -m edgeopt``."""

import sys

from edgeopt.system import fork_server

if __name__ == "__main__":
    if sys.argv[1:2] == ["report"]:
        fork_server()  # imports for the notebooks while this process does for itself
    from edgeopt.commands import main

    sys.exit(main())
