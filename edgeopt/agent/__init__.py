"""What measures on a device: one program of the standard library and NumPy, Python 3.9 or newer.

The device has none of edgeopt's other packages, so that nothing here imports them, and the names of
this room are imported from their modules.
"""

__all__: list[str] = []
