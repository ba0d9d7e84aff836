"""Sessions of Spark: started, reached, and what they say as errors of ours."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from speechmill.errors import EngineError, JobError, WorkerDiedError
from speechmill.runners.cluster import listens, settings

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

__all__ = ["GOES_ON", "context_of", "knock", "mapped", "new_session", "setting"]

STOPS_WITHIN_S = 3.0  # Spark's jobs fail a little before it is stopped, when its master has gone
GOES_ON = "once Spark runs again, the same command goes on from here"
# What Spark says of a job whose worker has died; anything else is no fault of the shard.
_DIED: Final = re.compile(
    r"Python worker exited unexpectedly|PYTHON_WORKER_|ExecutorLostFailure|Connection reset"
    r"|EOFException|Python worker (?:failed to connect back|process terminated)"
)
# What a client of Spark Connect says when its server has gone. It cannot be asked: it would go on
# trying for minutes.
_GONE: Final = re.compile(
    r"StatusCode\.UNAVAILABLE|Connection refused|SparkContext was shut down|stopped SparkContext"
)


def new_session(options: dict[str, str]) -> SparkSession:
    """A session with these settings.

    Raises:
        EngineError: Spark cannot be started or reached.
    """
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.config(map=dict[str, Any](options))
    if "spark.remote" in options:
        with mapped():
            return builder.getOrCreate()
    local = options.get("spark.master", "").startswith("local")
    # Local workers run the Python that this is, and Spark does not look for other addresses.
    here = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"} if local else {}
    with tempfile.TemporaryFile() as said, settings(here):
        try:
            _launch(options, said)
            return builder.getOrCreate()
        except Exception as error:  # noqa: BLE001 - of Java, py4j, settings
            raise EngineError(f"Spark could not be started: {_why(error, said)}") from None


def _launch(options: dict[str, str], said: IO[bytes]) -> None:
    """Start the JVM, where there is none yet, with what it says kept off the terminal."""
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    conf = SparkConf().setAll(list(options.items()))
    gateway = None
    if getattr(SparkContext, "_gateway", None) is None and "PYSPARK_GATEWAY_PORT" not in os.environ:
        gateway = launch_gateway(conf, {"stdout": said, "stderr": said})  # type: ignore[no-untyped-call]
    SparkContext(conf=conf, gateway=gateway)


def _why(error: Exception, said: IO[bytes]) -> str:
    """Why Spark did not start, in one line."""
    said.seek(0)
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines()]
    if "JAVA_GATEWAY_EXITED" in str(error):
        last = next((line for line in reversed(lines) if line), "it said nothing")
        return f"{last} (Spark needs Java 17 or newer, by JAVA_HOME or on the PATH)"
    return _line(error)


def knock(address: str) -> None:
    """That something listens where a cluster is said to be: Spark itself would try for minutes.

    Raises:
        EngineError: nothing does.
        JobError: the address makes no sense.
    """
    if not address.startswith(("spark://", "sc://")):
        return
    for one in address.split(";", maxsplit=1)[0].split(","):
        parsed = urlsplit(one if "://" in one else f"spark://{one}")
        try:
            port = parsed.port or (15002 if parsed.scheme == "sc" else 7077)
        except ValueError:
            raise JobError(f"address: {address!r} has no number for its port") from None
        if listens(parsed.hostname or "", port):
            return
    raise EngineError(f"nothing listens at {address}: is Spark running there?")


def context_of(session: SparkSession) -> SparkContext | None:
    """The session's context; Spark Connect has none."""
    try:
        return session.sparkContext
    except Exception:  # noqa: BLE001 - which one depends on the version
        return None


def setting(session: SparkSession, name: str, default: str = "") -> str:
    """One of the session's settings, as text."""
    with mapped(session):
        return str(session.conf.get(name, default))


@contextmanager
def mapped(session: SparkSession | None = None) -> Iterator[None]:
    """Spark's errors as ours."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - of pyspark, py4j, gRPC, sockets
        text = str(error)
        died = "stage failure" in text and _DIED.search(text) is not None
        if _has_gone(session, error, wait_s=0.0 if died else STOPS_WITHIN_S):
            raise EngineError(f"Spark has gone: it was stopped, or has died; {GOES_ON}") from None
        if died:
            raise WorkerDiedError("the process was killed, or was out of memory") from None
        raise EngineError(f"Spark could not do it: {_line(error)}") from None


def _has_gone(session: SparkSession | None, error: Exception, *, wait_s: float) -> bool:
    """Whether Spark itself is no longer there, or will not be in so many seconds.

    The context is asked. What is said of a call that it cuts short has no end of forms.
    """
    context = None if session is None else context_of(session)
    if context is None:
        return _GONE.search(f"{type(error).__name__}: {error}") is not None
    deadline = time.monotonic() + wait_s
    while not _is_stopped(context):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _is_stopped(context: SparkContext) -> bool:
    java: Any = context._jsc  # None once it was stopped from Python
    try:
        return java is None or bool(java.sc().isStopped())
    except Exception:  # noqa: BLE001 - the JVM does not answer: of py4j, sockets
        return True


def _line(error: Exception) -> str:
    """What an error says, of the pages that it may come with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if len(lines) > 1 and lines[0].startswith("An error occurred while calling"):
        lines = [re.sub(r"^: (?:[\w$]+\.)*[\w$]+: ", "", lines[1])]
    # Of an error in a worker, the last line of its traceback says what it was.
    if "Traceback" in lines[0] or "PythonException" in lines[0]:
        inner = [
            x for x in str(error).splitlines() if re.match(r"\w*(?:\.\w+)*(?:Error|Exception): ", x)
        ]
        lines = inner[:1] or lines
    return lines[0][:300]
