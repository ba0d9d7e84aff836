"""The former name of ``speechmill.export.dask``, kept for those who import it."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    # Asked for late: runners are below exports.
    return getattr(import_module("speechmill.export.dask"), name)
