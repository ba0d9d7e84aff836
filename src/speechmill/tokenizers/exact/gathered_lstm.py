"""An LSTM that hears several clips at once, with the very values that each gives alone.

Most of the time of an LSTM that hears one clip goes into fetching its weights, once a step. Several
clips share that. But oneDNN, which computes it, adds up in another order then: alone, the products
with the input are summed first and rounded, and those with the state are added to them; of several
clips both run into one sum, if input and state are of one width. So the input is made wider here,
by zeros whose weights are zeros: then the order is that of a clip alone, and so is every bit.

That is how oneDNN does it, and nobody promises it. So each number of clips is tried first, on the
model's own weights, against the clips alone; where a bit differs, clips are heard alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

__all__ = ["GatheredLSTM"]

ZEROS: Final = 16  # rows of the input stay aligned
TRIED_STEPS: Final = 6


class GatheredLSTM:
    """``torch.nn.LSTM`` of one direction, on several clips. To be called on one thread.

    Args:
        lstm: its weights are copied, and are to be what they will be.
    """

    def __init__(self, lstm: Any) -> None:
        self._lstm = lstm
        self._layers = (
            [_wider(lstm, number) for number in range(lstm.num_layers)] if _is_plain(lstm) else []
        )
        self._is_same: dict[int, bool] = {1: False}

    def __call__(self, clips: Sequence[Any]) -> list[Any]:
        """Tensors [num_steps, 1, width], in inference mode → [num_steps, 1, hidden] each."""
        count = len(clips)
        if self._layers and count not in self._is_same:
            self._is_same[count] = self._try(count)
        if not self._is_same.get(count, False):
            return [self._lstm(clip)[0] for clip in clips]
        return self._together(clips)

    def _together(self, clips: Sequence[Any]) -> list[Any]:
        from torch.nn.utils.rnn import pad_sequence

        hidden = pad_sequence([clip[:, 0] for clip in clips])
        for layer in self._layers:
            hidden = layer(_with_zeros(hidden))[0]
        return [hidden[: len(clip), i : i + 1].contiguous() for i, clip in enumerate(clips)]

    def _try(self, count: int) -> bool:
        """Whether so many clips at once give what they give alone."""
        import torch

        generator = torch.Generator().manual_seed(count)
        clips = [
            torch.randn(
                TRIED_STEPS - i % TRIED_STEPS, 1, self._lstm.input_size, generator=generator
            )
            for i in range(count)
        ]
        together = self._together(clips)
        return all(
            torch.equal(self._lstm(clip)[0], found)
            for clip, found in zip(clips, together, strict=True)
        )


def _is_plain(lstm: Any) -> bool:
    return bool(
        lstm.bias
        and not (lstm.bidirectional or lstm.proj_size or lstm.batch_first)
        and lstm.weight_ih_l0.device.type == "cpu"
    )


def _with_zeros(hidden: Any) -> Any:
    from torch.nn.functional import pad

    return pad(hidden, (0, ZEROS))


def _wider(lstm: Any, number: int) -> Any:
    """A layer of it, that takes some zeros besides."""
    import torch

    weights = {
        name: getattr(lstm, f"{name}_l{number}").detach()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    weights["weight_ih"] = _with_zeros(weights["weight_ih"])
    layer = torch.nn.LSTM(weights["weight_ih"].shape[1], lstm.hidden_size).eval()
    layer.load_state_dict({f"{name}_l0": weight for name, weight in weights.items()})
    return layer.requires_grad_(False)
