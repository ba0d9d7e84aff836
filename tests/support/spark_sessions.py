"""A Spark session as a user would have it, for the tests that need one."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from tests.support.weights import missing

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["need_spark", "spark_session"]


def need_spark() -> None:
    """Skip the test, or fail it in CI, where there is no pyspark or no Java."""
    try:
        import pyspark  # noqa: F401
    except ImportError:
        missing("there is no pyspark here: pip install pyspark")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        missing("there is no Java here, which Spark needs")


def spark_session(workers: int = 2) -> SparkSession:
    """This process's session, with so many workers; begun anew where it has been stopped. Spark may
    begin a task four times, as it does on clusters."""
    need_spark()
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    return (
        SparkSession.builder.master(f"local[{workers},4]")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.memory", "512m")
        .config("spark.driver.extraJavaOptions", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "OFF")
        .getOrCreate()
    )
