"""Headrace: a drop-in execution backend. See README.md."""

__version__ = "0.1.0"
