"""Images' rows that were computed before, in memory and on disk (docs/cache.md)."""
