"""Jobs: what a build is told, and the options of which a job consists."""

from __future__ import annotations

from speechmill.job.job import (
    EngineOptions,
    Job,
    StoresOptions,
    WorkerOptions,
    load_job,
    parse_tokenizer_options,
    read_job_file,
)
from speechmill.job.options import Options, panel_of, parse_options
from speechmill.job.recordings import Selection
from speechmill.job.transcription import SpokenOptions, TranscriptionOptions

__all__ = [
    "EngineOptions",
    "Job",
    "Options",
    "Selection",
    "SpokenOptions",
    "StoresOptions",
    "TranscriptionOptions",
    "WorkerOptions",
    "load_job",
    "panel_of",
    "parse_options",
    "parse_tokenizer_options",
    "read_job_file",
]
