"""A bucket of recorded speech goes in, a training-ready Parquet dataset comes out."""

from speechmill._version import __version__

__all__ = ["__version__"]
