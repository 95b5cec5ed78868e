"""edgeopt: which compressed variant of an image classifier to ship, and what it costs."""

__version__ = "0.1.0"
