"""Jobs: what a build is told, and the options of which a job consists."""

from __future__ import annotations

from speechmill.job.job import (
    Job,
    TokenOptions,
    WorkerOptions,
    load_job,
    read_job_file,
)
from speechmill.job.options import Options, explain, parse_options
from speechmill.job.recordings import Selection
from speechmill.job.transcription import SpokenOptions, TranscriptionOptions

__all__ = [
    "Job",
    "Options",
    "Selection",
    "SpokenOptions",
    "TokenOptions",
    "TranscriptionOptions",
    "WorkerOptions",
    "explain",
    "load_job",
    "parse_options",
    "read_job_file",
]
