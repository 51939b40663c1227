"""What `visiontower embed` wrote, read in blocks: a module for each format, and one function that says which it is."""

from service.bulk.results.opening import opened
from service.bulk.results.result import Origin, Result, Stretch

__all__ = ["Origin", "Result", "Stretch", "opened"]
