"""``export parquet`` that is killed at any moment: the same command gives the same files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.chaos import Chaos
from tests.support.harness import Bucket, Build, Command, Place, corpus, fill_folder
from tests.support.killing import age_leftovers, killed_and_finished
from tests.support.services import SeaweedFS

FILES = corpus(12, 2)
ROUNDS, MANY_ROUNDS = 1, 10_000
KILLS, MOST_KILLS = 1, 5


@pytest.fixture(params=["folder", "bucket"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """What the places of exports begin with."""
    if request.param == "folder":
        return Place(str(tmp_path / "out"))
    server: SeaweedFS = request.getfixturevalue("object_store")
    bucket = Bucket(server, tmp_path)
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    return bucket.place("s3://dst/exported/out")


@pytest.mark.timeout(900)
def test_an_export_killed_at_any_moment_ends_as_undisturbed(
    start: Place, chaos: Chaos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    source = fill_folder(tmp_path / "corpus", FILES)
    sink = str(tmp_path / "sink")
    assert Build(source.url, sink).finish().code == 0

    def export(out: Place) -> Command:
        return Command("export", "parquet", sink, out.url)

    whole = Place(f"{start.url}-whole", start.endpoint_url, start.profile)
    undisturbed = export(whole).finish()
    assert undisturbed.code == 0, undisturbed.err
    expected = whole.objects()
    assert len(expected) == 12
    for number in chaos.rounds(ROUNDS, MANY_ROUNDS):
        draw = chaos.draw("export", number)
        out = Place(f"{start.url}-{number}", start.endpoint_url, start.profile)
        kills = chaos.choose(KILLS, draw.randrange(1, MOST_KILLS))
        hits, finished = killed_and_finished(partial(export, out), undisturbed.seconds, kills, draw)
        assert finished.code == 0, finished.err
        if start.endpoint_url is None:
            age_leftovers(out)
            assert export(out).finish().code == 0
            files = [p for p in Path(out.url).rglob("*") if p.is_file()]
            assert {str(p.relative_to(out.url)) for p in files} == expected.keys(), number
        assert out.objects() == expected, number
        chaos.count("kills", hits)
        chaos.count("exports")
    chaos.count("temporary folders left", len(list((tmp_path / "temporary").iterdir())))
    assert chaos.counts["kills"]
