"""The error of clusters. Imports nothing: the command line knows it before anything heavy is loaded."""


class ClusterError(Exception):
    """A cluster that cannot be joined or used, in words for who asked for it."""
