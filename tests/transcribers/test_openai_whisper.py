"""openai-whisper: its own weights, and those of transformers under its names."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from transformers import WhisperForConditionalGeneration
from whisper.model import ModelDimensions, Whisper

from speechmill.errors import ModelError
from speechmill.records import Speech
from speechmill.transcribers import TranscriberOptions, open_transcriber
from speechmill.transcribers.openai_whisper import OpenAIWhisperTranscriber, openai_names
from tests.support.ct2_weights import whisper_folder

OPTIONS = TranscriberOptions(cpu_threads=1, temperature=(0.0,), beam_size=1)


def test_renamed_weights_compute_what_they_computed_before() -> None:
    theirs = WhisperForConditionalGeneration.from_pretrained(whisper_folder()).eval()
    ours = OpenAIWhisperTranscriber(str(whisper_folder()), OPTIONS)._whisper
    generator = torch.Generator().manual_seed(5)
    mel = torch.randn(1, 80, 3_000, generator=generator)
    tokens = torch.tensor([[50_257, 50_362, 2_504, 11, 314, 716]])
    with torch.no_grad():
        expected = theirs(input_features=mel, decoder_input_ids=tokens).logits
        found = ours(mel, tokens)
    assert torch.allclose(found, expected, atol=2e-3)
    assert expected.std() > 0.5  # so that the tolerance means something


def test_alignment_heads_are_those_of_the_checkpoint() -> None:
    ours = OpenAIWhisperTranscriber(str(whisper_folder()), OPTIONS)._whisper
    official = Whisper(ours.dims)
    official.set_alignment_heads(whisper._ALIGNMENT_HEADS["tiny.en"])
    assert torch.equal(ours.alignment_heads.to_dense(), official.alignment_heads.to_dense())


def test_names_that_whisper_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hold 'model\.encoder\.layers\.0\.adapter\.weight'"):
        openai_names({"model.encoder.layers.0.adapter.weight": torch.zeros(1)})
    weights = {
        "model.decoder.embed_tokens.weight": torch.zeros(2, 2),
        "proj_out.weight": torch.ones(2, 2),
    }
    with pytest.raises(ValueError, match="projection is not its token embedding"):
        openai_names(weights)


def test_a_vocabulary_that_openai_whisper_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text('{"model_type": "whisper", "vocab_size": 51900}')
    with pytest.raises(ModelError, match=r"vocab_size 51900, .*'transformers' may run it"):
        open_transcriber("openai-whisper", str(tmp_path))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of files: its address and its folder."""
    root = tmp_path / "served"
    root.mkdir()
    handler = functools.partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_port}", root
        files.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name upstream)
        pass


@pytest.fixture
def official(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """A small model that is served as the official tiny.en: its file, and its digest."""
    address, root = server
    torch.manual_seed(0)
    dimensions = ModelDimensions(80, 1_500, 64, 1, 1, 51_864, 448, 64, 1, 1)
    model = Whisper(dimensions)
    torch.nn.init.zeros_(model.decoder.positional_embedding)
    checkpoint = {"dims": asdict(dimensions), "model_state_dict": model.state_dict()}
    made = tmp_path / "made.pt"
    torch.save(checkpoint, made)
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    served = root / digest / "tiny.en.pt"
    served.parent.mkdir()
    made.rename(served)
    monkeypatch.setitem(whisper._MODELS, "tiny.en", f"{address}/{digest}/tiny.en.pt")
    monkeypatch.setitem(whisper._ALIGNMENT_HEADS, "tiny.en", _one_head())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return served, digest


def _one_head() -> bytes:
    import base64
    import gzip

    return base64.b85encode(gzip.compress(np.ones(1, bool).tobytes()))


def test_official_weights_are_downloaded_once_and_recorded(official: tuple[Path, str]) -> None:
    served, digest = official
    first = open_transcriber("openai-whisper", "tiny.en", OPTIONS)
    assert first.recipe["model"] == {"tiny.en.pt": digest}
    served.unlink()
    again = open_transcriber("openai-whisper", "tiny.en", OPTIONS)
    assert again.recipe == first.recipe
    (transcript,) = again.transcribe([Speech(np.full(16_000, 0.1, np.float32))])
    assert transcript.no_speech_prob is not None


def test_official_weights_that_are_not_what_they_should_be_are_refused(
    official: tuple[Path, str],
) -> None:
    served, _ = official
    served.write_bytes(served.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"'tiny\.en' is not on this machine .*or is damaged"):
        open_transcriber("openai-whisper", "tiny.en", OPTIONS)


def test_official_weights_that_are_nowhere_say_where_they_were_looked_for(
    official: tuple[Path, str],
) -> None:
    official[0].unlink()
    with pytest.raises(ModelError, match=r"no .*cache/whisper/tiny\.en\.pt.* 127\.0\.0\.1:\d+ "):
        open_transcriber("openai-whisper", "tiny.en", OPTIONS)
