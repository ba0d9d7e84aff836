"""A bucket of recorded speech goes in, a training-ready Parquet dataset comes out.

::

    import speechmill

    report = speechmill.build(speechmill.Job(source="s3://voices/vctk", sink="s3://voices/out"))
    rows = speechmill.open_dataset("s3://voices/out").to_table()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from speechmill._version import __version__

if TYPE_CHECKING:
    from speechmill.builder import build, plan
    from speechmill.dataset.arrays import tokens_to_arrays
    from speechmill.dataset.reader import open_dataset
    from speechmill.errors import SpeechmillError
    from speechmill.job import Job
    from speechmill.pipeline.planner import Plan
    from speechmill.pipeline.report import BuildReport
    from speechmill.pipeline.shard import process_shard
    from speechmill.tokens.decode import decode_tokens, open_codec

__all__ = [
    "BuildReport",
    "Job",
    "Plan",
    "SpeechmillError",
    "__version__",
    "build",
    "decode_tokens",
    "open_codec",
    "open_dataset",
    "plan",
    "process_shard",
    "tokens_to_arrays",
]

_HOMES = {
    "BuildReport": "pipeline.report",
    "Job": "job",
    "Plan": "pipeline.planner",
    "SpeechmillError": "errors",
    "build": "builder",
    "decode_tokens": "tokens.decode",
    "open_codec": "tokens.decode",
    "open_dataset": "dataset.reader",
    "plan": "builder",
    "process_shard": "pipeline.shard",
    "tokens_to_arrays": "dataset.arrays",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that nothing heavy comes before."""
    if name not in _HOMES:
        raise AttributeError(f"module 'speechmill' has no attribute {name!r}")
    value = getattr(import_module(f"speechmill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
