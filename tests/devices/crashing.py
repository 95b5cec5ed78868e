"""A session whose runtime dies of what it loads."""

import os
import signal

from edgeopt.agent.session import Session


class CrashingSession(Session):
    """Ends the process as soon as it is made."""

    threads, _ready, _logits = 1, None, None

    def __init__(self, artifact, *, threads):
        os.kill(os.getpid(), signal.SIGSEGV)
