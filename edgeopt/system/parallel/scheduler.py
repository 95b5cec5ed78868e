"""Names of Dask schedulers, and what goes wrong with one."""

import re

SCHEDULERS = "null, local, tcp://host:port, tls://host:port, or ssh:[host, ...]"


class SchedulerError(RuntimeError):
    """A scheduler cannot be reached or is gone, or one of its workers is unlike this machine."""


def check_scheduler(value: str) -> str:
    """Return the address of a scheduler; ``ValueError`` for what is none."""
    host_and_port = r"(tcp|tls)://([^\s/:\[\]]+|\[[0-9a-f:]+\]):\d{1,5}"
    if value == "local" or ssh_hosts(value) or re.fullmatch(host_and_port, value):
        return value
    raise ValueError(f"allowed: {SCHEDULERS}")


def ssh_hosts(value: str) -> list[str]:
    """Hosts of ``ssh:[a, b]``, in order; empty for another address."""
    found = re.fullmatch(r"ssh:\[\s*([^\s,\[\]]+(\s*,\s*[^\s,\[\]]+)*)\s*\]", value)
    return re.split(r"\s*,\s*", found[1]) if found else []
