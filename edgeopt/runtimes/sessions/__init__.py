"""How each runtime loads and calls a file: what goes to a device, with the agent that measures."""
