"""Checkpoints of Hugging Face transformers: any Whisper, and CTC models (wav2vec 2.0, HuBERT,
WavLM, …), by folder or hub id. The checkpoint's architecture says which it is."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from speechmill.errors import MissingExtraError, ModelError
from speechmill.models.checkpoints import read_json, resolve_checkpoint
from speechmill.models.torch import TorchEngine
from speechmill.transcribers.base import Transcriber, TranscriberOptions

__all__ = ["NAME", "REPOSITORIES", "open_transformers"]

NAME: Final = "transformers"

REPOSITORIES: Final = MappingProxyType(
    {
        **{
            size: f"openai/whisper-{size}"
            for size in (
                *("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"),
                *("large-v1", "large-v2", "large-v3", "large-v3-turbo"),
            )
        },
        "large": "openai/whisper-large-v3",
        "turbo": "openai/whisper-large-v3-turbo",
        **{
            f"distil-{size}": f"distil-whisper/distil-{size}"
            for size in ("small.en", "medium.en", "large-v2", "large-v3", "large-v3.5")
        },
    }
)
"""Whisper by size: the hub repositories in the format of transformers."""


def open_transformers(model: str, options: TranscriberOptions) -> Transcriber:
    """Open a checkpoint. See ``speechmill.transcribers.open_transcriber`` for the arguments.

    Raises:
        JobError: an option that the model or the device cannot do, or weights that are a pickle.
        MissingExtraError: transformers is not installed.
        ModelError: the weights cannot be found, read or trusted, or are of another kind.
    """
    try:
        import safetensors  # noqa: F401 - whether it is there
        import transformers  # noqa: F401
    except ImportError:
        raise MissingExtraError(f"the transcriber {NAME!r}", NAME) from None
    from speechmill.transcribers.transformers_ctc import TransformersCTC
    from speechmill.transcribers.transformers_whisper import TransformersWhisper

    engine = TorchEngine.place(
        options.device,
        options.compute_type,
        options.cpu_threads,
        what=f"the transcriber {NAME!r}",
        extra=NAME,
    )
    weights = resolve_checkpoint(model, REPOSITORIES)
    architectures = read_json(weights.folder / "config.json").get("architectures") or []
    if "WhisperForConditionalGeneration" in architectures:
        return TransformersWhisper(NAME, weights, engine, options)
    if any(str(architecture).endswith("ForCTC") for architecture in architectures):
        return TransformersCTC(NAME, weights, engine, options)
    found = ", ".join(map(str, architectures)) or "none"
    raise ModelError(
        f"the model {model!r} is neither Whisper nor a CTC model: the architectures in its "
        f"config.json are {found}; it must be WhisperForConditionalGeneration or …ForCTC"
    )
