"""Whether a process may have what threads and libraries need to start."""

import resource

# What the smallest run was tried with.
LEAST_OPEN_FILES, LEAST_ADDRESS_MIB = 128, 1900


def require_limits() -> None:
    """Raise ``ValueError`` where the process may open too few files, or address too little."""
    limits = (
        (resource.RLIMIT_NOFILE, "open files", "ulimit -n", 1, LEAST_OPEN_FILES),
        (resource.RLIMIT_AS, "MiB of address space", "ulimit -v", 2**20, LEAST_ADDRESS_MIB),
    )
    for kind, what, command, unit, least in limits:
        given, _ = resource.getrlimit(kind)
        if given != resource.RLIM_INFINITY and given < least * unit:
            raise ValueError(
                f"a process may have {given // unit:,} {what} ({command}); allowed: {least:,} or "
                "more"
            )
