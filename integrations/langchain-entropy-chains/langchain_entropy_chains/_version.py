"""The package's version, also where it runs from its source alone."""

__version__ = "0.1.0"
