"""Imports ExecuTorch's exporter where it is installed: seconds, which a fork server spends once."""

from contextlib import suppress

from edgeopt.system import RuntimeUnavailable, import_extra

with suppress(RuntimeUnavailable):
    import_extra("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    import_extra("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
