"""What a forward takes of a device, and what fits. Arithmetic: loads no weights, imports no torch."""
