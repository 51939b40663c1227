"""The errors of bulk runs. Imports nothing: the command line knows it before anything heavy is loaded."""


class BulkError(Exception):
    """A bulk run that cannot start or go on, in words for who started it."""


class NoSuchPlace(BulkError):
    """A URL that leads nowhere: nobody knows its scheme, or it names no bucket."""
