"""What runs shards. Adding an engine is one file, and one line in ``RUNNERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from speechmill.job import EngineOptions
from speechmill.runners.base import EngineRunner

__all__ = ["RUNNERS", "open_runner"]


def _local() -> EngineRunner:
    from speechmill.runners.local import LocalRunner

    return LocalRunner()


def _dask() -> EngineRunner:
    from speechmill.runners.dask import DaskRunner

    return DaskRunner()


def _ray() -> EngineRunner:
    from speechmill.runners.ray import RayRunner

    return RayRunner()


def _spark() -> EngineRunner:
    from speechmill.runners.spark import SparkRunner

    return SparkRunner()


RUNNERS: Final[Mapping[str, Callable[[], EngineRunner]]] = MappingProxyType(
    {"local": _local, "dask": _dask, "ray": _ray, "spark": _spark}
)
"""Name → a function that imports the runner's class and makes one."""


def open_runner(job: EngineOptions) -> EngineRunner:
    """The runner that the job names.

    Raises:
        MissingExtraError: the engine is not installed.
    """
    return RUNNERS[job.engine]()
