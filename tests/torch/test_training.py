"""A sink in a bucket as tensors: every row once, whatever the workers, and a model learns of it."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import speechmill
from speechmill.dataset.reader import list_parts
from speechmill.errors import DatasetError, JobError, ReplacedError, UnsupportedError
from speechmill.storage import open_store
from speechmill.tokens.patterns import deinterleave, interleave
from speechmill.torch import BucketBatchSampler, SpeechDataset, SpeechStream, collate
from tests.support.corpus import build, memory, wav, write
from tests.support.services import SeaweedFS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "training.md"
SPEAKERS, EACH = 5, 9
ROWS = SPEAKERS * EACH
NAMES = ("file_name", "token")


def recordings() -> dict[str, bytes]:
    """Each speaker hums at a pitch of its own; each recording has a length of its own."""
    return {
        f"p{s}/{i}.wav": wav(1_000 * i + 20 * s, 0.2 + 0.07 * i + 0.01 * s)
        for s in range(SPEAKERS)
        for i in range(EACH)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sink in a folder, with features and codes, in several parts a speaker."""
    root = tmp_path_factory.mktemp("training")
    sink = str(root / "sink")
    report = build(
        write(root / "in", recordings()), sink, tokenizer=("mfcc", "fake"), part_minutes=0.05
    )
    assert report.rows == ROWS
    assert len(list_parts(open_store(sink))) > SPEAKERS
    return sink


@pytest.fixture(scope="module")
def rows(folder: str) -> dict[str, dict[str, Any]]:
    found = speechmill.open_dataset(folder).to_table().to_pylist()
    return {row["file_name"]: row for row in found}


@pytest.fixture
def bucket(_filled: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """A sink in a bucket that this process has written: its obstore has threads by now."""
    sink, environment = _filled
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return sink


@pytest.fixture(scope="module")
def _filled(
    object_store: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    environment = object_store.write_profile(tmp_path_factory.mktemp("aws"), "train")
    sink = "s3://dst/training"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        report = build(
            memory(recordings()), sink, tokenizer=("mfcc",), part_minutes=0.05, profile="train"
        )
    assert report.rows == ROWS
    return sink, environment


def names_of(batches: Iterable[dict[str, Any]]) -> list[str]:
    return [name for batch in batches for name in batch["file_name"]]


def assert_every_row_once(names: list[str]) -> None:
    assert Counter(names) == Counter(recordings().keys())


def test_a_sample_has_the_tokens_of_its_row(folder: str, rows: dict[str, dict[str, Any]]) -> None:
    columns = ("file_name", "token", "token_fake", "duration_s", "flags", "folder_name", "words")
    dataset = SpeechDataset(folder, columns=columns)
    assert len(dataset) == ROWS
    for i in range(ROWS):
        sample = dataset[i]
        row = rows[sample["file_name"]]
        assert list(sample) == list(columns)
        assert sample["token"].dtype == torch.float32
        assert sample["token"].T.tolist() == row["token"]
        assert sample["token"].shape == (len(row["token"][0]), 20)
        assert sample["token_fake"].dtype == torch.int64
        assert sample["token_fake"].tolist() == row["token_fake"]
        for name in ("duration_s", "flags", "folder_name", "words"):
            assert sample[name] == row[name]
        assert abs(int(dataset.frames[i]) - len(sample["token"])) <= 1
    with pytest.raises(IndexError, match=f"there are {ROWS}"):
        dataset[ROWS]
    assert dataset[-1]["file_name"] == dataset[ROWS - 1]["file_name"]


def test_samples_are_the_callers_own(folder: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of tensors of memory that is read only
        dataset = SpeechDataset(folder, columns=["token", "token_fake"])
        for name in dataset[0]:
            before = dataset[0][name].clone()
            dataset[0][name].add_(1)
            assert torch.equal(dataset[0][name], before)


def test_a_condition_and_a_transform(folder: str) -> None:
    dataset = SpeechDataset(
        folder,
        columns=["folder_name", "duration_s"],
        where="folder_name IN ('p1', 'p3') and duration_s > 0.5",
        transform=lambda sample: (sample["folder_name"], sample["duration_s"]),
    )
    assert {name for name, _ in dataset.__getitems__(range(len(dataset)))} == {"p1", "p3"}
    assert min(dataset[i][1] for i in range(len(dataset))) > 0.5
    stream = SpeechStream(folder, columns=["folder_name"], where="folder_name = 'p2'")
    assert [sample["folder_name"] for sample in stream] == ["p2"] * EACH


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_over_a_bucket_read_every_row_once_an_epoch(bucket: str, method: str) -> None:
    stream = SpeechStream(bucket, columns=NAMES, profile="train")
    loader = DataLoader(
        stream, 4, num_workers=2, multiprocessing_context=method, collate_fn=collate,
        persistent_workers=True,
    )  # fmt: skip
    orders = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        orders.append(names_of(loader))
        assert_every_row_once(orders[-1])
    assert orders[0] != orders[1]  # the workers have heard of the second epoch


def test_batches_of_a_bucket_by_length_in_workers_have_every_row_once(bucket: str) -> None:
    dataset = SpeechDataset(bucket, columns=NAMES, profile="train")
    sampler = BucketBatchSampler(dataset, max_frames=100)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2, collate_fn=collate)
    batches = list(loader)
    assert len(batches) == len(sampler) == len(loader)
    assert_every_row_once(names_of(batches))
    assert all(batch["token_mask"].numel() <= 110 for batch in batches)


def test_a_model_learns_of_two_ranks_with_two_workers_each(bucket: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    ranks = [
        SpeechStream(bucket, columns=("folder_name", *NAMES), profile="train",
                     max_frames=120, rank=rank, world_size=2)
        for rank in range(2)
    ]  # fmt: skip
    loaders = [
        DataLoader(stream, None, num_workers=2, collate_fn=collate, persistent_workers=True)
        for stream in ranks
    ]
    losses = []
    for epoch in range(6):
        names: list[str] = []
        total = 0.0
        for stream, loader in zip(ranks, loaders, strict=True):
            stream.set_epoch(epoch)
            for batch in loader:
                names += batch["file_name"]
                mask = batch["token_mask"][..., None]
                mean = (batch["token"] / 30 * mask).sum(1) / mask.sum(1)
                speaker = torch.tensor([int(name[1:]) for name in batch["folder_name"]])
                loss = torch.nn.functional.cross_entropy(model(mean), speaker)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(speaker)
        assert_every_row_once(names)
        losses.append(total / ROWS)
    assert losses[-1] < 0.7 * losses[0], losses


RANK = """
import os, sys
import torch
from torch.utils.data import DataLoader
from speechmill.torch import SpeechStream, collate

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}",
                                     rank=int(sys.argv[3]), world_size=2)
stream = SpeechStream(sys.argv[1], columns=("file_name", "token"), max_frames=60, even="repeat")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(20, 1))
steps = 0
for batch in DataLoader(stream, None, collate_fn=collate):
    model(batch["token"]).sum().backward()
    steps += 1
    print(*batch["file_name"], sep="\\n")
print("steps", steps, file=sys.stderr)
"""


def test_ranks_of_torch_distributed_take_as_many_steps_as_each_other(
    folder: str, tmp_path: Path
) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, folder, str(tmp_path / "meet"), str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        ended = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], ended
    steps = [err.split()[-1] for _, err in ended]
    assert steps[0] == steps[1]
    names = [out.split() for out, _ in ended]
    assert set(names[0]) | set(names[1]) == recordings().keys()
    assert len(set(names[0])) < ROWS  # each had a share only


def test_rank_and_world_size_come_from_the_environment(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    names = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        share = [s["file_name"] for s in SpeechStream(folder, columns=NAMES)]
        assert len(share) == ROWS // 3
        names += share
    assert_every_row_once(names)
    assert len(list(SpeechStream(folder, columns=NAMES, rank=0, world_size=1))) == ROWS
    monkeypatch.setenv("RANK", "three")
    with pytest.raises(JobError, match="RANK='three'"):
        SpeechStream(folder)
    with pytest.raises(JobError, match="give both"):
        SpeechStream(folder, rank=1)
    with pytest.raises(JobError, match="rank=3"):
        SpeechStream(folder, rank=3, world_size=3)


@pytest.mark.parametrize("even", ["drop", "repeat"])
def test_uneven_ranks_are_made_even(folder: str, even: Any) -> None:
    dataset = SpeechDataset(folder, columns=NAMES)
    batches = [
        list(BucketBatchSampler(dataset, max_frames=70, even=even, rank=rank, world_size=4))
        for rank in range(4)
    ]
    assert len({len(b) for b in batches}) == 1
    times = Counter(row for rank in batches for batch in rank for row in batch)
    assert (max(times.values()) == 1) if even == "drop" else (set(times) == set(range(ROWS)))


def test_a_stream_reads_each_part_once_and_a_shuffled_dataset_hardly_more(folder: str) -> None:
    parts = len(list_parts(open_store(folder)))
    stream = SpeechStream(folder, columns=NAMES, window=10)
    assert_every_row_once([s["file_name"] for s in stream])
    assert stream.reader.parts_read == parts
    dataset = SpeechDataset(folder, columns=NAMES, cache_mb=0.05)
    for batch in BucketBatchSampler(dataset, batch_size=4, window=10):
        dataset.__getitems__(batch)
    assert parts <= dataset.reader.parts_read <= 2 * parts
    small = SpeechDataset(folder, columns=NAMES, cache_mb=0)
    for row in np.random.default_rng(0).permutation(ROWS):
        small[row]
    assert small.reader.parts_read > 2 * parts


def test_an_interrupted_epoch_goes_on_where_it_was(folder: str) -> None:
    dataset = SpeechDataset(folder, columns=NAMES)

    def sampler() -> BucketBatchSampler:
        return BucketBatchSampler(dataset, batch_size=4, window=10)

    def stream(**options: Any) -> SpeechStream:
        return SpeechStream(folder, columns=NAMES, window=10, **options)

    def batches(**options: Any) -> SpeechStream:
        return stream(batch_size=4, **options)

    def key(item: Any) -> Any:
        return [s["file_name"] for s in item] if isinstance(item, list) and isinstance(
            item[0], dict) else item["file_name"] if isinstance(item, dict) else item  # fmt: skip

    for make in (sampler, stream, batches):
        first, second = make(), make()
        first.set_epoch(3)
        whole = [key(item) for item in first]
        first.set_epoch(3)
        begun = [key(item) for item in itertools.islice(first, 7)]
        state = pickle.loads(pickle.dumps(first.state_dict()))
        assert state == {"epoch": 3, "done": 7}
        second.load_state_dict(state)
        second.set_epoch(3)
        assert begun + [key(item) for item in second] == whole
        second.set_epoch(4)
        assert len([*second]) in range(len(whole) - 4, len(whole) + 5)  # nothing is skipped now


def test_a_loader_that_keeps_its_workers_states_goes_on(folder: str) -> None:
    loading = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> Any:
        stream = SpeechStream(folder, columns=NAMES, window=10, max_frames=60)
        return loading.StatefulDataLoader(stream, None, num_workers=2, collate_fn=collate)

    whole = [batch["file_name"] for batch in loader()]
    first, second = loader(), loader()
    begun = [batch["file_name"] for batch in itertools.islice(first, 5)]
    second.load_state_dict(first.state_dict())
    assert begun + [batch["file_name"] for batch in second] == whole


def test_a_batch_is_padded_and_says_what_is_real(folder: str) -> None:
    dataset = SpeechDataset(folder, columns=["token", "token_fake", "duration_s", "sample_rate",
                                             "transcription"])  # fmt: skip
    samples = [dataset[i] for i in (0, 5, 9)]
    batch = collate(samples, pad_code=-1, pad_feature=7.0)
    longest = max(len(s["token"]) for s in samples)
    assert batch["token"].shape == (3, longest, 20)
    assert batch["token_fake"].shape == (3, 4, int(batch["token_fake_lengths"].max()))
    for i, sample in enumerate(samples):
        length = len(sample["token"])
        assert batch["token_lengths"][i] == length
        assert torch.equal(batch["token"][i, :length], sample["token"])
        assert (batch["token"][i, length:] == 7.0).all()
        assert batch["token_mask"][i].tolist() == [t < length for t in range(longest)]
        codes = sample["token_fake"].shape[1]
        assert torch.equal(batch["token_fake"][i, :, :codes], sample["token_fake"])
        assert (batch["token_fake"][i, :, codes:] == -1).all()
    assert batch["duration_s"].dtype == torch.float64
    assert batch["sample_rate"].tolist() == [16_000] * 3
    assert batch["transcription"] == [s["transcription"] for s in samples]


def flat(sample: dict[str, Any]) -> dict[str, Any]:
    """Codes as one sequence, as a transform in a worker of its own makes them."""
    return {**sample, "token_fake": interleave(sample["token_fake"], codebook_size=1_024)}


def test_flattened_codes_are_batched_and_come_back(folder: str) -> None:
    columns = ["file_name", "token_fake"]
    plain = SpeechDataset(folder, columns=columns)
    flattened = SpeechDataset(folder, columns=columns, transform=flat)
    loader = DataLoader(flattened, 8, collate_fn=functools.partial(collate, pad_code=-100),
                        num_workers=1, multiprocessing_context="spawn")  # fmt: skip
    batch = next(iter(loader))
    assert batch["token_fake"].shape == (8, int(batch["token_fake_lengths"].max()))
    for i in range(8):
        tokens = batch["token_fake"][i, : batch["token_fake_lengths"][i]]
        codes = deinterleave(tokens, num_codebooks=4, codebook_size=1_024)
        np.testing.assert_array_equal(codes, plain[i]["token_fake"])


def test_tokens_that_do_not_go_together_are_an_error(tmp_path: Path) -> None:
    sink = str(tmp_path / "out")
    build(write(tmp_path / "in", {"p1/a.wav": wav()}), sink, tokenizer=("none",))
    sample = SpeechDataset(sink, columns=NAMES)[0]
    assert sample["token"] is None
    assert collate([sample])["token"] == [None]
    there = {"file_name": "b", "token": torch.zeros(3, 20)}
    with pytest.raises(DatasetError, match=r"p1/a\.wav has no token.*token IS NOT NULL"):
        collate([there, sample])
    with pytest.raises(DatasetError, match=r"do not go together.*\[3, 13\]"):
        collate([there, {"file_name": "c", "token": torch.zeros(3, 13)}])


def test_a_loader_that_does_not_go_with_its_stream_says_how(folder: str) -> None:
    for stream, batch_size in (
        (SpeechStream(folder, columns="token", max_frames=90), 2),
        (SpeechStream(folder, columns="token"), None),
    ):
        with pytest.raises(JobError, match="collate takes a list of samples"):
            next(iter(DataLoader(stream, batch_size, collate_fn=collate)))


def test_memory_of_another_process_says_so() -> None:
    sink = memory()
    build(memory({"p1/a.wav": wav()}), sink)
    with pytest.raises(UnsupportedError, match="num_workers=0"):
        next(iter(DataLoader(SpeechDataset(sink), num_workers=1, multiprocessing_context="fork")))


def test_a_build_meanwhile_changes_no_epoch(tmp_path: Path) -> None:
    source, sink = str(tmp_path / "in"), str(tmp_path / "out")
    write(tmp_path / "in", {f"p1/{i}.wav": wav(i) for i in (1, 3)})
    build(source, sink)
    opened = SpeechStream(sink, columns=["file_name"], shuffle=False)
    dataset = SpeechDataset(sink, columns=["file_name"])
    write(tmp_path / "in", {f"p1/{i}.wav": wav(i) for i in (0, 2, 4)})
    build(source, sink)
    expected = ["p1/1.wav", "p1/3.wav"]
    assert [s["file_name"] for s in opened] == expected
    assert [dataset[i]["file_name"] for i in range(2)] == expected
    (tmp_path / "in" / "p1" / "1.wav").unlink()
    build(source, sink, prune=True)
    with pytest.raises(ReplacedError, match="open it anew"):
        list(opened)
    assert len(list(SpeechStream(sink))) == 4


def test_samplers_need_a_bound_and_datasets_a_sink(folder: str, tmp_path: Path) -> None:
    dataset = SpeechDataset(folder)
    with pytest.raises(JobError, match="how large is a batch"):
        BucketBatchSampler(dataset)
    with pytest.raises(DatasetError, match="there is no dataset"):
        SpeechDataset(str(tmp_path))
    with pytest.raises(JobError, match="no column 'tokens'"):
        SpeechStream(folder, columns=["tokens"])
    copied = copy.deepcopy(SpeechStream(folder, columns=["duration_s"]))
    assert default_collate(list(copied))["duration_s"].shape == (ROWS,)


def test_without_torch_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; import speechmill.torch"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert "pip install 'speechmill[torch]'" in ended.stderr


def test_speechmill_itself_does_not_import_torch() -> None:
    code = "import sys, speechmill; speechmill.open_dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hugging_face_datasets_load_a_sink_in_one_line(
    folder: str, rows: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    loaded = [
        datasets.load_dataset("parquet", data_dir=f"{folder}/data", split="train",
                              cache_dir=str(tmp_path)),
        datasets.load_dataset("parquet", data_files=f"{folder}/data/**/*.parquet", split="train",
                              cache_dir=str(tmp_path)),
        datasets.Dataset(speechmill.open_dataset(folder).to_table()),
    ]  # fmt: skip
    for found in loaded:
        assert found.num_rows == ROWS
        value = datasets.Value
        assert found.features["transcription"] == value("string")
        assert found.features["token"] == datasets.List(datasets.List(value("float32")))
        assert found.features["token_fake"] == datasets.List(datasets.List(value("int16")))
        assert found.features["duration_s"] == value("float64")
        tensors = found.with_format("torch", columns=["token", "token_fake"])
        for name, row in zip(found["file_name"], tensors, strict=True):
            assert row["token"].tolist() == rows[name]["token"]
            assert row["token_fake"].tolist() == rows[name]["token_fake"]


def test_hugging_face_datasets_take_a_bucket_as_a_table(bucket: str) -> None:
    table = speechmill.open_dataset(bucket, profile="train").to_table()
    found = datasets.Dataset(table).with_format("numpy")
    assert sorted(found["file_name"]) == sorted(recordings())
    assert found[0]["token"].shape[0] == 20


def test_the_snippets_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sink = str(tmp_path / "out")
    build(write(tmp_path / "in", recordings()), sink, tokenizer=("fake", "mfcc"))
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 9
    names: dict[str, Any] = {"SINK": sink}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)  # they are ours
    assert names["loss"].item() > 0
    assert len(names["some"]) > 0
    assert names["batch"]["token"].ndim == 2
    assert len(names["rest"]) == len(names["sampler"]) - 1
