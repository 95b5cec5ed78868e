"""Opens an executor whose workers a Dask scheduler has, without importing Dask before."""

from concurrent.futures import Executor

from edgeopt.system.upstream import import_extra


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
    from edgeopt.system.parallel.cluster import Cluster, connected

    return Cluster(*connected(address), address=address)
