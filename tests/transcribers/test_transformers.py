"""Checkpoints of transformers: what is found where, CTC, and the parts of Whisper's decoding that
are our own."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.records import Speech
from speechmill.transcribers import TranscriberOptions, open_transcriber
from speechmill.transcribers.alignment import first_frames, split_words
from speechmill.transcribers.transformers import REPOSITORIES
from speechmill.transcribers.transformers_ctc import emissions, token_texts, words_of
from speechmill.transcribers.transformers_search import cut_at_timestamps
from tests.support.ct2_weights import whisper_folder
from tests.support.ctc_checkpoint import BLANK, VOCABULARY, write_ctc_checkpoint
from tests.support.weights import speech, whisper

CLIP = "speech/367/367-130732-0000.flac"
ZERO = 100  # the timestamp token of 0 s, in these tests


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ctc_checkpoint(tmp_path_factory.mktemp("ctc"))


def options(**changes: Any) -> TranscriberOptions:
    told: dict[str, Any] = {"device": "cpu", "cpu_threads": 1} | changes
    return TranscriberOptions(**told)


# --- cutting at timestamps -----------------------------------------------------------------------


def test_spans_end_where_two_timestamps_meet() -> None:
    tokens = [ZERO, 1, 2, ZERO + 50, ZERO + 60, 3, ZERO + 100, ZERO + 100, 4]
    spans, goes_on_s = cut_at_timestamps(tokens, ZERO, 30.0)
    assert spans == [(0.0, 1.0, tokens[:4]), (1.2, 2.0, tokens[4:7])]
    assert goes_on_s == 2.0


def test_a_timestamp_alone_at_the_end_says_that_no_more_is_said() -> None:
    tokens = [ZERO, 1, ZERO + 50, ZERO + 60, 3, ZERO + 100]
    spans, goes_on_s = cut_at_timestamps(tokens, ZERO, 30.0)
    assert spans == [(0.0, 1.0, tokens[:3]), (1.2, 2.0, tokens[3:])]
    assert goes_on_s is None


def test_without_a_pair_of_timestamps_all_is_one_span() -> None:
    assert cut_at_timestamps([ZERO, 1, ZERO + 50], ZERO, 7.0)[0] == [(0, 1, [ZERO, 1, ZERO + 50])]
    assert cut_at_timestamps([ZERO, 1], ZERO, 7.0)[0] == [(0.0, 7.0, [ZERO, 1])]
    assert cut_at_timestamps([], ZERO, 7.0) == ([(0.0, 7.0, [])], None)


@given(st.lists(st.integers(0, 120), max_size=30))
def test_spans_hold_the_tokens_up_to_where_it_goes_on(tokens: list[int]) -> None:
    spans, goes_on_s = cut_at_timestamps(tokens, ZERO, 7.0)
    held = [token for _, _, span in spans for token in span]
    assert held == tokens[: len(held)]
    if goes_on_s is None:
        assert held == tokens
    else:
        assert (held[-1] - ZERO) * 0.02 <= goes_on_s <= (tokens[len(held)] - ZERO) * 0.02 or (
            goes_on_s == pytest.approx((held[-1] - ZERO) * 0.02)
        )


# --- the times of words --------------------------------------------------------------------------


def best_gain(gain: NDArray[np.float64]) -> float:
    """The best way's gain, by trying every sequence of beginnings."""
    num_tokens, num_frames = gain.shape
    every = product(range(num_frames), repeat=num_tokens - 1)
    return max(gain_of(gain, [0, *begins]) for begins in every)


def gain_of(gain: NDArray[np.float64], begins: list[int]) -> float:
    """The best gain among the ways on which tokens begin at these frames."""
    if any(b < a for a, b in pairwise(begins)):
        return -np.inf
    total = 0.0
    for token, begin in enumerate(begins):
        last = gain.shape[1] - 1 if token + 1 == len(begins) else begins[token + 1]
        total += gain[token, begin:last].sum()
        if token + 1 == len(begins):
            total += gain[token, last]
        elif last == begin:
            total += gain[token, last]  # it has one frame, which the next token has, too
        else:
            total += max(gain[token, last], 0.0)  # the next one begins beside it, or above it
    return total


@given(
    st.integers(1, 4).flatmap(
        lambda tokens: st.integers(1, 4).flatmap(
            lambda frames: st.lists(
                st.lists(st.integers(-9, 9), min_size=frames, max_size=frames),
                min_size=tokens,
                max_size=tokens,
            )
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_the_way_through_the_attention_is_the_best_of_all(rows: list[list[int]]) -> None:
    gain = np.array(rows, np.float64)
    begins = first_frames(gain)
    assert len(begins) == len(rows)
    assert begins[0] == 0
    assert gain_of(gain, begins) == pytest.approx(best_gain(gain))


@pytest.mark.parametrize("spaced", [True, False])
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("ab, .!?-'éß日本語、。中🙂 "), max_size=30))
def test_words_join_to_the_text_and_use_up_its_tokens(text: str, *, spaced: bool) -> None:
    tokenizer = backend_tokenizer()
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    words = split_words(tokens, tokenizer.decode, spaced=spaced)
    assert "".join(word for word, _ in words) == tokenizer.decode(tokens)
    assert sum(count for _, count in words) == len(tokens)


def test_punctuation_goes_with_the_word_before_it() -> None:
    tokenizer = backend_tokenizer()
    for text, spaced, expected in (
        (" Oh, so it's 5 o'clock.", True, [" Oh,", " so", " it's", " 5", " o'clock."]),
        ("日本、語。", False, ["日", "本、", "語。"]),
    ):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert [w for w, _ in split_words(tokens, tokenizer.decode, spaced=spaced)] == expected


def backend_tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(whisper("tiny.en").folder / "tokenizer.json"))


def test_words_begin_about_when_openai_whisper_says(tmp_path: Path) -> None:
    folder = str(whisper_folder())
    theirs, ours = (
        open_transcriber(name, folder, options(words=True)).transcribe([Speech(speech(CLIP))])[0]
        for name in ("openai-whisper", "transformers")
    )
    assert theirs.words
    assert ours.words
    assert [w.word for w in ours.words] == [w.word for w in theirs.words]
    for mine, other in zip(ours.words, theirs.words, strict=True):
        assert mine.start_s == pytest.approx(other.start_s, abs=0.1)
        assert mine.probability == pytest.approx(other.probability, abs=0.2)


def test_log_probabilities_of_beams_and_of_greedy_search_are_openai_whispers() -> None:
    # The windows differ a little: transformers pads samples, openai-whisper the spectrogram.
    for beam_size in (1, 5):
        told = options(beam_size=beam_size, temperature=(0.0,))
        theirs, ours = (
            open_transcriber(name, str(whisper_folder()), told).transcribe([Speech(speech(CLIP))])[
                0
            ]
            for name in ("openai-whisper", "transformers")
        )
        assert ours.text == theirs.text
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=0.1)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=0.05)


# --- CTC -----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([4, 4, 5, 6, 7, BLANK, BLANK]), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_frames_spell_what_transformers_own_tokenizer_reads(frames: list[int]) -> None:
    logprobs = np.full((len(frames), len(VOCABULARY)), -9.0, np.float32)
    logprobs[range(len(frames)), frames] = -0.5
    pieces = token_texts(ctc_tokenizer(), len(VOCABULARY))
    emitted = [e for e in emissions(logprobs, BLANK) if pieces[e.token]]
    words = words_of(emitted, pieces, 0.02)
    expected = ctc_tokenizer().decode(frames)
    assert " ".join(word.word for word in words) == " ".join(expected.split())
    times = [time_s for word in words for time_s in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert all(word.probability == pytest.approx(np.exp(-0.5)) for word in words)


_tokenizers: list[Any] = []


def ctc_tokenizer() -> Any:
    if not _tokenizers:
        import tempfile

        from transformers import Wav2Vec2CTCTokenizer

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.json"
            path.write_text(json.dumps(VOCABULARY))
            _tokenizers.append(Wav2Vec2CTCTokenizer(str(path)))
    return _tokenizers[0]


class SentencePieces:
    """As much of a tokenizer as is asked for its pieces."""

    all_special_tokens = ("<pad>",)

    def convert_ids_to_tokens(self, ids: range) -> list[str]:
        return ["<pad>", "▁so", "▁", "n", "g"]


def test_pieces_of_sentencepiece_begin_words_at_their_mark() -> None:
    pieces = token_texts(SentencePieces(), 5)
    logprobs = np.log(np.eye(5, dtype=np.float32)[[1, 3, 0, 3, 2, 4, 1, 0]] + 1e-3)
    words = words_of([e for e in emissions(logprobs, 0) if pieces[e.token]], pieces, 0.5)
    assert [w.word for w in words] == ["sonn", "g", "so"]
    assert [(w.start_s, w.end_s) for w in words] == [(0.0, 2.0), (2.5, 3.0), (3.0, 3.5)]


def test_special_tokens_and_those_beyond_the_vocabulary_say_nothing(ctc: Path) -> None:
    from transformers import AutoTokenizer

    pieces = token_texts(AutoTokenizer.from_pretrained(ctc), len(VOCABULARY) + 2)
    assert pieces[:6] == ["", "", "", "", " ", "E"]
    assert pieces[len(VOCABULARY) :] == ["", ""]


def test_a_tokenizer_that_lowers_the_case_is_followed(ctc: Path, tmp_path: Path) -> None:
    folder = changed(ctc, tmp_path, "tokenizer_config.json", do_lower_case=True)
    clip = [Speech(speech(CLIP))]
    upper, lower = (
        open_transcriber("transformers", str(f), options()).transcribe(clip)[0].text
        for f in (ctc, folder)
    )
    assert upper != lower == upper.lower()


def test_confidence_is_that_of_the_frames_that_say_something(ctc: Path) -> None:
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForCTC

    samples = speech(CLIP)
    (transcript,) = open_transcriber("transformers", str(ctc), options()).transcribe(
        [Speech(samples)]
    )
    inputs = AutoFeatureExtractor.from_pretrained(ctc)(
        samples.copy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        logprobs = AutoModelForCTC.from_pretrained(ctc)(**inputs).logits[0].log_softmax(-1)
    best = logprobs.max(-1)
    assert transcript.avg_logprob == pytest.approx(
        best.values[best.indices != BLANK].mean().item(), abs=1e-4
    )
    assert transcript.no_speech_prob == pytest.approx(
        logprobs[:, BLANK].exp().min().item(), abs=1e-6
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"task": "translate"},
        {"languages": ("de",)},
        {"initial_prompt": "Hm."},
        {"hotwords": "Stella"},
        {"suppress_numerals": True},
        {"window": "full"},
        {"beam_size": 3},
        {"temperature": (0.5,)},
        {"batch_size": 8},
    ],
)
def test_what_a_ctc_model_cannot_do_is_refused(ctc: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=next(iter(asked))):
        open_transcriber("transformers", str(ctc), options(**asked))


def test_greedy_search_may_be_asked_of_ctc_by_name(ctc: Path) -> None:
    told = options(beam_size=1, temperature=(0.0,), initial_prompt="")
    assert open_transcriber("transformers", str(ctc), told).recipe == (
        open_transcriber("transformers", str(ctc), options()).recipe
    )


def test_the_rate_is_the_extractors(ctc: Path, tmp_path: Path) -> None:
    assert open_transcriber("transformers", str(ctc), options()).sample_rate == 16_000
    folder = changed(ctc, tmp_path, "preprocessor_config.json", sampling_rate=8_000)
    slow = open_transcriber("transformers", str(folder), options(words=True))
    assert slow.sample_rate == 8_000
    samples = speech(CLIP)
    (transcript,) = slow.transcribe([Speech(samples)])
    assert transcript.segments[-1].end_s == pytest.approx(len(samples) / 8_000, abs=0.2)


# --- what a checkpoint is ------------------------------------------------------------------------


def changed(folder: Path, tmp_path: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint in which a JSON file says something else."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    said = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps(said))
    return copy


def test_an_architecture_that_is_neither_is_refused(ctc: Path, tmp_path: Path) -> None:
    folder = changed(ctc, tmp_path, "config.json", architectures=["Wav2Vec2Model"])
    with pytest.raises(ModelError, match=r"neither Whisper nor a CTC model: .* are Wav2Vec2Model"):
        open_transcriber("transformers", str(folder), options())


def test_a_head_that_was_never_trained_is_not_made_up(ctc: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed(ctc, tmp_path, "config.json")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"it lacks 1 weights, such as lm_head\.weight"):
        open_transcriber("transformers", str(folder), options())


def test_code_in_a_checkpoint_is_not_run(ctc: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "evil.Config", "AutoModelForCTC": "evil.Model"}
    folder = changed(ctc, tmp_path, "config.json", auto_map=code)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nConfig = Model = int\n")
    assert open_transcriber("transformers", str(folder), options())
    assert not (tmp_path / "ran").exists()


def test_weights_in_shards_are_read_and_recorded(ctc: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCTC

    folder = tmp_path / "shards"
    shutil.copytree(ctc, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCTC.from_pretrained(ctc).save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole, cut = (open_transcriber("transformers", str(f), options()) for f in (ctc, folder))
    clip = [Speech(speech(CLIP))]
    assert cut.transcribe(clip) == whole.transcribe(clip)
    digests = cut.recipe["model"]
    assert isinstance(digests, dict)
    assert set(shards) <= digests.keys()
    (folder / shards[0]).unlink()
    with pytest.raises(ModelError, match=f"lacks {shards[0]}"):
        open_transcriber("transformers", str(folder), options())


def test_digests_are_those_of_the_files_and_of_no_others(ctc: Path, tmp_path: Path) -> None:
    folder = changed(ctc, tmp_path, "config.json")
    (folder / "README.md").write_text("Trained on cats.")
    (folder / "pytorch_model.bin").write_bytes(b"not read: there are safetensors")
    digests = open_transcriber("transformers", str(folder), options()).recipe["model"]
    assert digests == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix in {".json", ".safetensors"}
    }


@pytest.mark.parametrize("model", ["bass", "./nowhere", ""])
def test_what_is_no_model_is_a_model_error(model: str) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        open_transcriber("transformers", model, options())


def test_whisper_by_size_has_the_names_of_the_default_transcriber() -> None:
    from speechmill.models.weights import WHISPER_REPOSITORIES

    assert set(REPOSITORIES) == set(WHISPER_REPOSITORIES)


# --- the hub -------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs; its repository is a folder."""

    folder: Path
    commit = "a" * 40

    def do_HEAD(self) -> None:
        self.reply()

    def do_GET(self) -> None:
        self.reply()

    def reply(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        if self.path.startswith("/api/models/org/model"):
            names = [{"rfilename": path.name} for path in self.folder.iterdir()]
            info = {"id": "org/model", "sha": self.commit, "siblings": names}
            body = json.dumps(info).encode()
        elif self.path.startswith("/org/model/resolve/") and (self.folder / name).is_file():
            body = (self.folder / name).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name upstream)
        pass


@pytest.fixture
def hub(ctc: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A hub's address, and the folder that it serves as org/model."""
    folder = tmp_path / "served"
    shutil.copytree(ctc, folder)
    handler = type("Handler", (Hub,), {"folder": folder})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def open_elsewhere(name: str, tmp_path: Path, endpoint: str) -> tuple[str, str, str]:
    """Resolve in another process, whose hub client reads its settings anew: what came of it,
    where from, and what it wrote to the terminal."""
    program = (
        "import sys\n"
        "from speechmill.errors import SpeechmillError\n"
        "from speechmill.models.checkpoints import resolve_checkpoint\n"
        "try:\n"
        "    model = resolve_checkpoint(sys.argv[1], {'base': 'org/model'})\n"
        "    print(model.digests['model.safetensors'], model.origin)\n"
        "except SpeechmillError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env=env | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint},
        capture_output=True,
        check=True,
        text=True,
    )
    first, _, rest = done.stdout.strip().partition(" ")
    return first, rest, done.stderr


@pytest.mark.parametrize("name", ["org/model", "base"])
def test_a_checkpoint_comes_from_the_hub_once_then_from_its_cache(
    name: str, hub: tuple[str, Path], tmp_path: Path
) -> None:
    endpoint, folder = hub
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert open_elsewhere(name, tmp_path, endpoint) == (digest, "hub", "")
    nowhere = "http://127.0.0.1:9"
    assert open_elsewhere(name, tmp_path, nowhere) == (digest, "cache", "")


def test_pickles_are_not_even_downloaded(hub: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, folder = hub
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error, message, _ = open_elsewhere("org/model", tmp_path, endpoint)
    assert error == "JobError"
    assert "in pytorch_model.bin, a pickle" in message
    assert not list((tmp_path / "hf").rglob("pytorch_model.bin"))


def test_a_checkpoint_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    error, message, _ = open_elsewhere("org/model", tmp_path, "http://127.0.0.1:9")
    assert error == "ModelError"
    assert "no org/model in the hub cache" in message
    assert "http://127.0.0.1:9 does not give it" in message
