"""The errors of bulk runs. Imports nothing: the command line knows it before anything heavy is loaded."""


class BulkError(Exception):
    """A bulk run that cannot start or go on, in words for who started it."""


class UnknownScheme(BulkError):
    """No library here or elsewhere reads such URLs."""
