"""What a process needs for a job is opened once, whoever asks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from speechmill import Job, tokenizers
from speechmill.pipeline.resources import forget_resources, open_resources
from speechmill.tokenizers.fake import FakeTokenizer
from speechmill.transcribers import TranscriberOptions
from tests.support.corpus import memory


def test_a_transcriber_is_told_what_the_job_says_of_transcription() -> None:
    said = {
        "language": "de",
        "beam_size": 2,
        "temperature": (0.2,),
        "words": True,
        "hotwords": "Zoë",
        "batch_size": 3,
    }
    job = Job(source="in", sink="out", threads=4, **said)
    told = TranscriberOptions.of(job).model_dump()
    assert {name: told[name] for name in said} == said
    assert told["cpu_threads"] == 4
    assert told.keys() - {"cpu_threads"} <= Job.model_fields.keys()


def test_two_shards_that_begin_together_share_one_set_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = threading.Barrier(2)
    opened: list[FakeTokenizer] = []

    class Slow(FakeTokenizer):
        def __init__(self) -> None:
            opened.append(self)
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.5)  # met only where both threads open at the same time

    monkeypatch.setattr(tokenizers, "TOKENIZERS", {**tokenizers.TOKENIZERS, "slow": lambda: Slow})
    job = Job(source=memory(), sink=memory(), transcriber="fake", tokenizer=("slow",))
    forget_resources()
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(open_resources, [job, job])
    assert one.threads is other.threads
    assert one is other
    assert len(opened) == 1
