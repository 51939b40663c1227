"""The sinks of a bulk run: a module for each format, and one function that says which sink a name means."""

from service.bulk.sinks.choice import FILES, Layout, shard_rows, sink_of
from service.bulk.sinks.one_file import OneFile
from service.bulk.sinks.sink import Counts, Sink, TableSink, write

__all__ = [
    "FILES",
    "Counts",
    "Layout",
    "OneFile",
    "Sink",
    "TableSink",
    "shard_rows",
    "sink_of",
    "write",
]
