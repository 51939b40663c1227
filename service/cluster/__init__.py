"""Many machines, by Ray: the part of a machine that an engine gets, and the way into a cluster."""
