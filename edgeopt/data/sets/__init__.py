"""Sets that are known by name: where they are fetched, and the embedded one."""
