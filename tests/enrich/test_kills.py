"""``measure`` that is killed at any moment, on a folder and on a bucket, ends as undisturbed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.chaos import Chaos
from tests.support.harness import Bucket, Build, Command, Place, assert_same_dataset, corpus
from tests.support.harness import fill_folder as fill
from tests.support.killing import age_leftovers, copied, killed_and_finished, state_of
from tests.support.services import SeaweedFS

FILES = corpus(6, 4)
ROUNDS, MANY_ROUNDS = 1, 10_000
KILLS, MOST_KILLS = 1, 5


@pytest.fixture(params=["folder", "bucket"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, Place, Bucket | None]:
    """A filled source, what sinks' places begin with, and the bucket."""
    if request.param == "folder":
        return fill(tmp_path / "corpus", FILES), Place(str(tmp_path / "sink")), None
    server: SeaweedFS = request.getfixturevalue("object_store")
    bucket = Bucket(server, tmp_path)
    return bucket.fill("measured", FILES), bucket.place("s3://dst/measured/sink"), bucket


@pytest.mark.timeout(900)
def test_measure_killed_at_any_moment_ends_as_undisturbed(
    places: tuple[Place, Place, Bucket | None], chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, start, bucket = places
    for name, value in (bucket.env if bucket else {}).items():
        monkeypatch.setenv(name, value)

    def place(name: str) -> Place:
        return Place(f"{start.url}-{name}", start.endpoint_url, start.profile)

    def measure(sink: Place) -> Command:
        return Command("measure", sink.url, "level", "fake")

    built = place("built")
    assert Build(source.url, built.url).finish().code == 0
    whole = copied(built, place("whole"))
    undisturbed = measure(whole).finish()
    assert undisturbed.code == 0, undisturbed.err
    for number in chaos.rounds(ROUNDS, MANY_ROUNDS):
        draw = chaos.draw("measure", number)
        sink = copied(built, place(str(number)))
        kills = chaos.choose(KILLS, draw.randrange(1, MOST_KILLS))
        hits, finished = killed_and_finished(
            partial(measure, sink), undisturbed.seconds, kills, draw
        )
        assert finished.code == 0, finished.err
        assert_same_dataset(sink, whole)
        if bucket is None:
            age_leftovers(sink)
            assert Build(source.url, sink.url).finish().code == 0
        assert state_of(sink) == state_of(whole), number
        chaos.count("kills", hits)
        chaos.count("sinks measured")
    assert chaos.counts["kills"]
