"""The processes that serve, and their sockets."""
