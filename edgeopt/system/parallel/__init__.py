"""Processes of this machine and workers of a Dask scheduler, behind one executor."""
