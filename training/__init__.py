"""Trains what the package ships. Not in the wheel."""
