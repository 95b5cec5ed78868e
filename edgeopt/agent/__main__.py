"""Start the agent: ``python -m edgeopt.agent``, or the archive that holds it."""

import os
import sys

if sys.version_info < (3, 9):
    sys.exit("edgeopt's agent needs Python 3.9 or newer; this is " + sys.version.split()[0])
try:
    import numpy  # noqa: F401
except ModuleNotFoundError:
    sys.exit("edgeopt's agent needs NumPy: python3 -m pip install numpy")

from edgeopt.agent.program import main

code = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # unloading torch would take a quarter of the time of a short process
