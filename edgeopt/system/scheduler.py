"""Who trains and prepares: processes of this machine, or the workers of a Dask scheduler."""

import re
from concurrent.futures import Executor

from edgeopt.system.upstream import import_extra

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


def open_scheduler(address: str) -> Executor:
    """Reach a Dask scheduler, or start one, as an executor that ends with this process.

    ``local`` starts a worker for each usable core, ``ssh:[a, b]`` one for every host as often as it
    is named, with the scheduler on the first; there the project is expected where it lies here.
    ``tls://`` takes its certificates from Dask's own configuration.

    Raises
    ------
    SchedulerError
        Nothing answers there, or a worker has other packages than this process.
    RuntimeUnavailable
        When Dask is not installed.
    """
    import_extra("distributed")
    from edgeopt.system.cluster import Cluster, connected

    return Cluster(*connected(address), address=address)
