"""Channels that are split or chosen: each has rows of its own, as if it were a file of its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from numpy.typing import NDArray

import speechmill
from speechmill import audio
from speechmill.dataset.index import open_index, read_rows
from speechmill.dataset.summary import failed_recordings
from speechmill.enrich.add import add_tokens, measure
from speechmill.errors import JobError, RecipeChangedError
from speechmill.job import Job
from speechmill.storage import open_store
from speechmill.tokens.verify import verify_tokens
from tests.support import corpus

RATE = 16_000
DEMO = Path(__file__).parents[2] / "examples" / "corpus"
OF_A_FILE = ("file_name", "source_size", "source_etag", "source_modified", "recipe", "channels")
COSTS = ("fetch_s", "decode_s", "transcribe_s", "tokenize_s")


def wav(*channels: NDArray[np.int16]) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack(channels, axis=1), RATE, format="WAV")
    return buffer.getvalue()


def noises(seconds: float, *seeds: int) -> tuple[NDArray[np.int16], ...]:
    return tuple(corpus.samples(seed, seconds) for seed in seeds)


CALLS = {
    "p1/a.wav": noises(0.5, 1, 2),
    "p1/b.wav": noises(0.4, 3, 4),
    "p2/three.wav": noises(0.3, 5, 6, 7),
    "p2/mono.wav": noises(0.3, 8),
}
NUM_SIGNALS = sum(map(len, CALLS.values()))


def speakers() -> tuple[NDArray[np.int16], ...]:
    """Half a minute and more of two speakers of the demo corpus, at the same time."""

    def one(speaker: str) -> NDArray[np.int16]:
        clips = [soundfile.read(p, dtype="int16") for p in sorted((DEMO / speaker).glob("*.flac"))]
        samples = np.concatenate([np.asarray(clip[:: rate // RATE]) for clip, rate in clips])
        return np.resize(samples, 40 * RATE).astype(np.int16)

    return one("p901"), one("p902")


@pytest.fixture(scope="module")
def calls() -> str:
    return corpus.memory({name: wav(*channels) for name, channels in CALLS.items()})


@pytest.fixture(scope="module")
def split(calls: str) -> str:
    """The calls, each channel by itself, with two tokenizers and a measure."""
    sink = corpus.memory()
    options = {"tokenizer": ("fake", "mfcc"), "measure": ("level",)}
    assert corpus.build(calls, sink, channels="split", **options).failed == 0
    return sink


def table_of(sink: str) -> pa.Table:
    return speechmill.open_dataset(sink).to_table()


def values(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of its sound."""
    return {k: v for k, v in row.items() if k not in (*OF_A_FILE, *COSTS, "channel")}


def assert_as_files_of_their_own(split: pa.Table, apart: pa.Table, calls: Any) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in split.to_pylist():
        assert row["channels"] == len(calls[row["file_name"]])
        name = f"{row['file_name'][:-4]}-{row['channel']}.wav"
        found.setdefault(name, []).append(values(row))
    expected: dict[str, list[dict[str, Any]]] = {}
    for row in apart.sort_by([("file_name", "ascending"), ("start_s", "ascending")]).to_pylist():
        assert row["channel"] is None
        expected.setdefault(row["file_name"], []).append(values(row))
    assert found == expected


def in_files(calls: Any) -> str:
    return corpus.memory(
        {
            f"{name[:-4]}-{number}.wav": wav(samples)
            for name, channels in calls.items()
            for number, samples in enumerate(channels)
        }
    )


def test_split_channels_have_the_rows_that_they_have_as_files_of_their_own(split: str) -> None:
    alone = corpus.memory()
    corpus.build(in_files(CALLS), alone, tokenizer=("fake", "mfcc"), measure=("level",))
    assert_as_files_of_their_own(table_of(split), table_of(alone), CALLS)


def test_each_channel_of_a_long_call_is_cut_by_its_own_voice() -> None:
    call = {"p1/call.wav": speakers()}
    sink, alone = corpus.memory(), corpus.memory()
    corpus.build(corpus.memory({n: wav(*c) for n, c in call.items()}), sink, channels="split")
    corpus.build(in_files(call), alone)
    rows = table_of(sink)
    assert_as_files_of_their_own(rows, table_of(alone), call)
    keys = list(zip(rows["channel"].to_pylist(), rows["start_s"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    spans = [{start for channel, start in keys if channel == number} for number in (0, 1)]
    assert all(len(some) > 1 for some in spans)
    assert spans[0] != spans[1]


def test_rows_of_a_recording_lie_in_one_part(calls: str) -> None:
    sink = corpus.memory()
    corpus.build(calls, sink, channels="split", part_minutes=0.001)
    parts: dict[str, set[str]] = {}
    for fragment in speechmill.open_dataset(sink).get_fragments():
        for name in fragment.to_table(columns=["file_name"])["file_name"].to_pylist():
            parts.setdefault(name, set()).add(fragment.path)
    assert parts.keys() == CALLS.keys()
    assert {len(paths) for paths in parts.values()} == {1}
    assert len({path for paths in parts.values() for path in paths}) > 2


def test_one_channel_is_taken_and_who_lacks_it_is_told_how_many_there_are(
    calls: str, split: str
) -> None:
    sink = corpus.memory()
    options = {"tokenizer": ("fake", "mfcc"), "measure": ("level",)}
    report = corpus.build(calls, sink, channels="1", **options)
    expected = [values(r) for r in table_of(split).to_pylist() if r["channel"] == 1]
    found = table_of(sink).to_pylist()
    assert [values(r) for r in found] == expected
    assert {r["channel"] for r in found} == {1}
    assert report.failed == 1
    (failed,) = failed_recordings(open_store(sink))
    assert (failed.file_name, failed.stage, failed.error, failed.message) == (
        *("p2/mono.wav", "decode", "ChannelError"),
        "it has no channel 1: it has one channel, 0; choose another by --channels, or mix",
    )
    again = corpus.build(calls, sink, channels=1, **options)
    assert (again.rows, again.failed) == (0, 0)


def test_the_mix_has_the_recipe_and_the_rows_that_it_had(calls: str) -> None:
    plain, mix = corpus.memory(), corpus.memory()
    corpus.build(calls, plain)
    corpus.build(calls, mix, channels="mix")
    rows = table_of(plain).drop_columns(list(COSTS))
    assert table_of(mix).drop_columns(list(COSTS)).equals(rows)
    assert rows["channel"].null_count == rows.num_rows == len(CALLS)
    with pytest.raises(RecipeChangedError, match=r'audio.channels: null → "split"'):
        corpus.build(calls, plain, channels="split")


def test_a_rebuild_goes_from_the_mix_to_channels_and_back(calls: str) -> None:
    sink, mix, split = corpus.memory(), corpus.memory(), corpus.memory()
    corpus.build(calls, mix)
    corpus.build(calls, split, channels="split")
    for channels, expected in (("mix", mix), ("split", split), ("mix", mix)):
        corpus.build(calls, sink, channels=channels, rebuild=True)
        found, wanted = (table_of(s).drop_columns(list(COSTS)) for s in (sink, expected))
        assert found.equals(wanted)


def test_what_was_cut_short_goes_on_and_what_has_changed_is_made_anew() -> None:
    source = corpus.memory({name: wav(*channels) for name, channels in CALLS.items()})
    whole, sink = corpus.memory(), corpus.memory()
    corpus.build(source, whole, channels="split")
    assert corpus.build(source, sink, channels="split", limit=2).rows < NUM_SIGNALS
    corpus.build(source, sink, channels="split")
    assert corpus.build(source, sink, channels="split").rows == 0
    found, wanted = (table_of(s).drop_columns(list(COSTS)) for s in (sink, whole))
    assert found.equals(wanted)
    open_store(source).put("p2/three.wav", wav(*noises(0.2, 9)))
    assert corpus.build(source, sink, channels="split").rows == 1
    rows = [r for r in table_of(sink).to_pylist() if r["file_name"] == "p2/three.wav"]
    assert [(r["channel"], r["channels"], r["duration_s"]) for r in rows] == [(0, 1, 0.2)]


def test_a_worker_elsewhere_is_told_of_channels_and_track() -> None:
    job = Job(source="a", sink="b", channels="split", track=1)
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_what_is_added_later_is_of_the_rows_own_channel(calls: str, split: str) -> None:
    later = corpus.memory()
    corpus.build(calls, later, channels="split")
    store = open_store(later)
    assert add_tokens(store, "mfcc").complete
    assert measure(store, ["level"]).complete
    wanted, found = table_of(split), table_of(later)
    names = [n for n in wanted.column_names if n not in (*COSTS, "recipe")]
    assert found.select(names).equals(wanted.select(names))
    assert found.num_rows == NUM_SIGNALS
    assert len(set(map(str, found["token_mfcc"].to_pylist()))) == found.num_rows


def test_tokens_of_channels_are_verified_by_their_own_sound(split: str) -> None:
    for column in ("token", "token_mfcc"):
        report = verify_tokens(open_store(split), column=column, sample=NUM_SIGNALS)
        assert (report.rows, report.rate, report.lost) == (NUM_SIGNALS, 0.0, {})


def test_readers_tell_the_channels_of_a_recording_apart(split: str) -> None:
    store = open_store(split)
    everything = open_index(store)
    assert len(set(everything.identities.tolist())) == everything.num_rows == NUM_SIGNALS
    second = open_index(store, "channel = 1")
    columns = ["file_name", "channel"]
    found = pa.concat_tables([read_rows(store, second, i, columns) for i in range(2)]).to_pylist()
    assert found == [
        {"file_name": name, "channel": 1} for name, some in CALLS.items() if len(some) > 1
    ]


def test_a_channel_that_fails_leaves_no_row_of_the_others(
    calls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of a recording come together, or none does."""
    real = audio.decode_isolated

    def decode(data: Any, **choices: Any) -> Any:
        if choices["channel"] == 2:
            raise RuntimeError("not this one")
        return real(data, **choices)

    monkeypatch.setattr(audio, "decode_isolated", decode)
    sink = corpus.memory()
    report = corpus.build(calls, sink, channels="split")
    assert report.failed == 1
    assert set(table_of(sink)["file_name"].to_pylist()) == CALLS.keys() - {"p2/three.wav"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("left", "must be mix, split, or a channel's number from 0, not 'left'"),
        ("-1", "not '-1'"),
        ("", "not ''"),
        (True, "channels"),
        (1.5, "channels"),
    ],
)
def test_what_is_no_choice_of_channels_is_an_error(given: Any, problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        Job(source="a", sink="b", channels=given)


def test_a_channel_may_be_a_number_in_a_job_file() -> None:
    assert Job(source="a", sink="b", channels=1).channels == "1"
    assert Job(source="a", sink="b", channels="01").channels == "1"
