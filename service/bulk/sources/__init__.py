"""The sources of a bulk run: a module for each kind, and one function that says which kind a name is."""

from service.bulk.sources.files import SUFFIXES
from service.bulk.sources.inputs import inputs_of
from service.bulk.sources.options import Options

__all__ = ["SUFFIXES", "Options", "inputs_of"]
