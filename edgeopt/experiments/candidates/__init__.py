"""A network in one precision for one runtime: made, scored, timed."""
