"""Tasks and what came of them as JSON text, for engines that carry text between machines.

The text is ASCII: keys that are not UTF-8 (surrogate escapes) come through any engine.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from pydantic import TypeAdapter

from speechmill import errors
from speechmill.enrich.shards import EnrichedShard, Enrichment, PartsShard
from speechmill.errors import EngineError, MissingExtraError, SpeechmillError, WorkerDiedError
from speechmill.job import Job
from speechmill.records import Part, Recording, Shard, ShardReport
from speechmill.runners.work import Task, keep_memory, run_task
from speechmill.storage import Object

__all__ = ["died_text", "perform", "report_from_text", "task_from_text", "task_to_text"]

_PARTS: Final[Mapping[type, TypeAdapter[Any]]] = {
    Shard: TypeAdapter(tuple[tuple[Part, tuple[Recording, ...]], ...]),
    PartsShard: TypeAdapter(tuple[Object, ...]),
}
_REPORTS: Final[Mapping[str, TypeAdapter[Any]]] = {
    one.__name__: TypeAdapter(one) for one in (ShardReport, EnrichedShard)
}


def task_to_text(task: Task) -> str:
    """The task as JSON."""
    return json.dumps(
        {
            "job": task.job.model_dump_json(),
            "shard": task.shard.index,
            "parts": _PARTS[type(task.shard)].dump_python(task.shard.parts),
            "only": task.shard.only if isinstance(task.shard, PartsShard) else None,
            "recipe": task.recipe,
            "attempt": task.attempt,
            "cores": task.cores,
        }
    )


def task_from_text(text: str) -> Task:
    """The inverse of ``task_to_text``."""
    told = json.loads(text)
    index, parts, only = told["shard"], told.pop("parts"), told.pop("only")
    if only is not None:
        told["job"] = Enrichment.model_validate_json(told["job"])
        told["shard"] = PartsShard(index, _PARTS[PartsShard].validate_python(parts), tuple(only))
    else:
        told["job"] = Job.model_validate_json(told["job"])
        told["shard"] = Shard(index, _PARTS[Shard].validate_python(parts))
    return Task(**told)


def perform(text: str, function: Callable[[Task], ShardReport] = run_task) -> str:
    """Do a task that is given as JSON. Returns what came of it as JSON, errors included."""
    keep_memory()
    try:
        report = function(task_from_text(text))
        return json.dumps({"report": asdict(report), "of": type(report).__name__})
    except SpeechmillError as error:
        told = [error.what, error.extra] if isinstance(error, MissingExtraError) else [str(error)]
        return json.dumps({"error": type(error).__name__, "args": told})
    except MemoryError:
        return died_text("out of memory")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told where the build is
        return json.dumps({"error": "EngineError", "args": [_defect(error)]})


def died_text(why: str) -> str:
    """What came of a task whose worker has died, as JSON."""
    return json.dumps({"error": WorkerDiedError.__name__, "args": [why]})


def report_from_text(text: str) -> ShardReport:
    """What came of a task.

    Raises:
        SpeechmillError: what the worker's task raised.
        EngineError: the text is something else, or a worker met an error that is a defect.
    """
    try:
        told: dict[str, Any] = json.loads(text)
        if "error" not in told:
            report: ShardReport = _REPORTS[told["of"]].validate_python(told["report"])
            return report
        raised = getattr(errors, told["error"])(*told["args"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"a worker's answer cannot be read: {error}") from None
    raise raised


def _defect(error: Exception) -> str:
    """An error that nobody foresaw, in one line."""
    where = traceback.extract_tb(sys.exc_info()[2])[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"a worker met an error that is a defect: {text} ({where.filename}:{where.lineno})"
