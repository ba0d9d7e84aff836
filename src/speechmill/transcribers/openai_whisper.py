"""Whisper (Radford et al., 2022) by its authors' own code, openai-whisper: the reference.

Weights come by the names that its authors gave them, or from a folder in the format of
transformers, whose safetensors are given the names of openai-whisper's modules here. A ``.pt`` of
other origin is a pickle, and is never opened.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import MissingExtraError, ModelError
from speechmill.models.checkpoints import (
    alignment_heads,
    cannot_load,
    read_json,
    resolve_checkpoint,
    weight_files,
)
from speechmill.models.torch import TorchEngine
from speechmill.models.weights import Model
from speechmill.transcribers.base import TranscriberOptions
from speechmill.transcribers.languages import LANGUAGES
from speechmill.transcribers.results import decoded_segment
from speechmill.transcribers.torch_whisper import DECODING, DecodedSpeech, TorchWhisper

__all__ = ["OpenAIWhisperTranscriber", "openai_names"]

NAME: Final = "openai-whisper"
VERSION: Final = 2
"""Raised by hand whenever this module gives other text or figures: it is part of the recipe."""

DOWNLOAD_TIMEOUT_S: Final = 5.0
"""How long the server of the official weights may take to answer; openai-whisper itself would wait
for ever."""

VOCABULARIES: Final = (51_864, 51_865, 51_866)
"""English-only, multilingual, and large-v3: openai-whisper tells them apart by their size."""

# transformers' name → openai-whisper's, within a layer and outside of it.
_IN_LAYER: Final = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_OUTSIDE: Final = {
    "encoder.conv1": "encoder.conv1",
    "encoder.conv2": "encoder.conv2",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "decoder.embed_tokens": "decoder.token_embedding",
}
_POSITIONS: Final = re.compile(r"model\.(encoder|decoder)\.embed_positions\.weight")
_LAYER: Final = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OTHER: Final = re.compile(r"model\.(.+)\.(weight|bias)")


class OpenAIWhisperTranscriber(TorchWhisper):
    """openai-whisper. See ``speechmill.transcribers.open_transcriber`` for the arguments.

    ``model`` is one of its own names (``base``, ``large-v3``, …), or a folder or hub id of a
    checkpoint in the format of transformers.

    Raises:
        JobError: an option that the model or the device cannot do, or weights that are a pickle.
        MissingExtraError: openai-whisper is not installed.
        ModelError: the weights cannot be found, read or trusted.
    """

    def __init__(self, model: str, options: TranscriberOptions) -> None:
        try:
            import whisper
        except ImportError:
            raise MissingExtraError(f"the transcriber {NAME!r}", NAME) from None

        engine = TorchEngine.place(
            options.device,
            options.compute_type,
            options.cpu_threads,
            what=f"the transcriber {NAME!r}",
            extra=NAME,
        )
        if model in whisper.available_models():
            weights, self._whisper = _load_official(model, engine.device)
        else:
            weights = resolve_checkpoint(model, {})
            self._whisper = _load_checkpoint(weights, engine.device, words=options.words)
        multilingual = bool(self._whisper.is_multilingual)
        codes = list(whisper.tokenizer.LANGUAGES)[: self._whisper.num_languages]
        super().__init__(
            NAME,
            VERSION,
            weights,
            engine,
            known=[code for code in codes if code in LANGUAGES] if multilingual else ["en"],
            multilingual=multilingual,
            options=options,
        )

    def _probabilities(self, samples: NDArray[np.float32]) -> dict[str, float]:
        import whisper

        mel = whisper.log_mel_spectrogram(
            samples, self._whisper.dims.n_mels, padding=whisper.audio.N_SAMPLES
        )
        window = whisper.pad_or_trim(mel, whisper.audio.N_FRAMES)
        return self._languages(window.to(self._whisper.device, self._engine.dtype))

    def _languages(self, window: Any) -> dict[str, float]:
        """Compute each language's probability in a window, of log mel energies or encoded."""
        import whisper

        _, probabilities = whisper.detect_language(self._whisper, window)
        return {code: float(p) for code, p in probabilities.items() if code in LANGUAGES}

    def _decode_speech(self, samples: NDArray[np.float32], language: str) -> DecodedSpeech:
        import whisper

        listener = _NoSpeechRecorder(self._whisper)
        found = whisper.transcribe(
            listener,
            samples,
            verbose=None,
            language=language if self._multilingual else None,
            task=self._options.task,
            beam_size=self._options.beam_size,
            temperature=self._options.temperature,
            initial_prompt=self._prompt(),
            carry_initial_prompt=True,
            condition_on_previous_text=False,
            word_timestamps=self._options.words,
            suppress_tokens=[-1, *self._numerals],
            fp16=self._engine.compute_type == "float16",
            **DECODING,
        )
        pieces = tuple(decoded_segment(segment) for segment in found["segments"])
        languages: dict[str, float] = {}
        if self._multilingual and listener.encoded is not None:
            languages = self._languages(listener.encoded)
        return DecodedSpeech(pieces, tuple(listener.no_speech_probs) or (1.0,), languages)

    @cached_property
    def _numerals(self) -> list[int]:
        """The tokens of numerals, if they are unwanted."""
        import whisper

        if not self._options.suppress_numerals:
            return []
        tokenizer = whisper.tokenizer.get_tokenizer(
            self._multilingual, num_languages=self._whisper.num_languages
        )
        return [t for t in range(tokenizer.eot) if self._is_numeral(tokenizer.decode([t]))]


class _NoSpeechRecorder:
    """The model, as ``whisper.transcribe`` uses it, with a record of each window's no-speech
    probability, which is otherwise lost where a window gave no text, and of what the encoder made
    of the first."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._window: Any = None
        self.no_speech_probs: list[float] = []
        self.encoded: Any = None

    def decode(self, mel: Any, options: Any) -> Any:
        """``whisper.decode``: the same window comes again at each temperature."""
        result = self._model.decode(mel, options)
        if self.encoded is None:
            self.encoded = result.audio_features
        if mel is not self._window:
            self._window = mel
            self.no_speech_probs.append(0.0)
        self.no_speech_probs[-1] = float(result.no_speech_prob)
        return result

    def __call__(self, *tensors: Any) -> Any:
        return self._model(*tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _load_official(name: str, device: str) -> tuple[Model, Any]:
    """Load the weights that Whisper's authors publish; openai-whisper checks their SHA-256.

    Raises:
        ModelError: they are not on this machine, and their server does not give them.
    """
    import whisper

    url: str = whisper._MODELS[name]
    root = os.environ.get("XDG_CACHE_HOME") or os.fspath(Path.home() / ".cache")
    file = Path(root) / "whisper" / url.rpartition("/")[2]
    try:
        if not file.is_file():  # openai-whisper would wait for ever for a server that is silent
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - an https URL
            urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S).close()  # noqa: S310
        loaded = whisper.load_model(name, device=device, download_root=os.fspath(file.parent))
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"the model {name!r} is not on this machine (no {file}) or is damaged, and "
            f"{url.split('/')[2]} does not give it ({reason}). Give this machine a way there once, "
            "put the file there, or give a folder that holds the model in the format of "
            "transformers."
        ) from error
    digest = url.split("/")[-2]
    return Model(name, file.parent, {file.name: digest}, "cache"), loaded


def _load_checkpoint(weights: Model, device: str, *, words: bool) -> Any:
    """Load a checkpoint in the format of transformers into openai-whisper's model.

    Raises:
        JobError: words are asked for, and nothing says which heads tell their times.
        MissingExtraError: safetensors is not installed.
        ModelError: it is no Whisper that openai-whisper can run, or its weights are not whole.
    """
    import torch
    from whisper.model import ModelDimensions, Whisper

    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtraError(f"a folder as model of {NAME!r}", NAME) from None

    config = read_json(weights.folder / "config.json")
    if config.get("model_type") != "whisper" or config.get("vocab_size") not in VOCABULARIES:
        raise ModelError(
            f"{weights.name!r} is no Whisper that openai-whisper can run: model_type is "
            f"{config.get('model_type')!r}, vocab_size {config.get('vocab_size')}, not whisper and "
            f"one of {VOCABULARIES}; the transcriber 'transformers' may run it"
        )
    try:
        dimensions = ModelDimensions(
            n_mels=config["num_mel_bins"],
            n_audio_ctx=config["max_source_positions"],
            n_audio_state=config["d_model"],
            n_audio_head=config["encoder_attention_heads"],
            n_audio_layer=config["encoder_layers"],
            n_vocab=config["vocab_size"],
            n_text_ctx=config["max_target_positions"],
            n_text_state=config["d_model"],
            n_text_head=config["decoder_attention_heads"],
            n_text_layer=config["decoder_layers"],
        )
        model = Whisper(dimensions)
        state: dict[str, Any] = {}
        for path in weight_files(weights.folder, weights.name):
            state |= load_file(path)
        model.load_state_dict(openai_names(state))
        if heads := alignment_heads(weights, words=words):
            mask = torch.zeros(dimensions.n_text_layer, dimensions.n_text_head, dtype=torch.bool)
            mask[[layer for layer, _ in heads], [head for _, head in heads]] = True
            model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise cannot_load(weights, error) from error
    except SafetensorError as error:
        raise cannot_load(weights, error) from error
    return model.eval().to(device)


def openai_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the state dict of transformers' Whisper to openai-whisper's modules.

    The output projection is left out: it is the token embedding.

    Raises:
        ValueError: a name that Whisper does not have, or a projection that is another one.
    """
    projection = state.get("proj_out.weight")
    if projection is not None and not projection.equal(state["model.decoder.embed_tokens.weight"]):
        raise ValueError("its output projection is not its token embedding")
    return {
        _openai_name(name): tensor for name, tensor in state.items() if name != "proj_out.weight"
    }


def _openai_name(name: str) -> str:
    if found := _POSITIONS.fullmatch(name):
        return f"{found[1]}.positional_embedding"
    if (found := _LAYER.fullmatch(name)) and found[3] in _IN_LAYER:
        return f"{found[1]}.blocks.{found[2]}.{_IN_LAYER[found[3]]}.{found[4]}"
    if (found := _OTHER.fullmatch(name)) and found[1] in _OUTSIDE:
        return f"{_OUTSIDE[found[1]]}.{found[2]}"
    raise ValueError(f"the weights hold {name!r}, which Whisper does not have")
