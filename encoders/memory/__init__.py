"""The cost of a forward, the room on a device, the limits of a machine. Loads no weights, imports no torch."""
