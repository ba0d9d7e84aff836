"""EnCodec's causal encoder, in pieces: the same values in bounded memory and less time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from speechmill.tokenizers.exact.pointwise import SHARED, VECTORS

__all__ = ["StreamedEncoder", "padded", "quicken"]

WINDOW_S: Final = 2.0
"""Seconds of audio that the convolutions take at a time: more would not fit the caches."""

STRETCH_S: Final = 120.0
"""Seconds of audio that the LSTM and the quantizer take at a time."""


class StreamedEncoder:
    """``EncodecEncoder`` of a waveform, stretch by stretch.

    Its convolutions look back only: those before the LSTM see a few frames, and are computed in
    windows that overlap by as many. The LSTM hands its state on. A waveform of less than two
    windows, or the waveform of an encoder that looks ahead, is computed whole.

    The encoder itself is changed by ``quicken``.
    """

    def __init__(self, encoder: Any, hop_length: int, sample_rate: int) -> None:
        quicken(encoder)
        layers = list(encoder.layers)
        self._hop_length = hop_length
        place = next(i for i, layer in enumerate(layers) if type(layer).__name__ == "EncodecLSTM")
        self._front, self._tail = layers[:place], layers[place + 1 :]
        self._lstm = layers[place].lstm
        # PyTorch computes small inputs in another way, so each layer gets more than those. And a
        # window ends with a whole number of vectors, as the same place does within the whole.
        enough = SHARED // _fewest(self._front, hop_length) + 1
        step = _vectors(self._front, hop_length)
        window = max(enough, round(WINDOW_S * sample_rate / hop_length))
        self._window = _rounded_up(window, step or 1)
        stretch = max(window, round(STRETCH_S * sample_rate / hop_length))
        self._stretch = _rounded_up(stretch, self._window)
        self._causal = all(m.causal for m in encoder.modules() if hasattr(m, "causal"))
        self._causal = self._causal and step is not None
        self._context = _rounded_up(-(-_reach(self._front) // hop_length), step or 1)
        self._tail_reach = _reach(self._tail)

    def __call__(self, samples: Any) -> Iterator[Any]:
        """Tensor [N, 1, num_samples] → latents [N, hidden_size, num_frames], in stretches."""
        import torch

        num_frames = -(-samples.shape[-1] // self._hop_length)
        state, before = None, None
        for start, end in _pieces(0, num_frames, self._stretch if self._causal else num_frames):
            hidden = _joined(self._windows(samples, start, end, num_frames))
            steps = hidden.permute(2, 0, 1)
            heard, state = self._lstm(steps, state)
            heard = (heard + steps).permute(1, 2, 0)
            joined = heard if before is None else torch.cat([before, heard], dim=-1)
            latents = _through(self._tail, joined)
            yield latents if before is None else latents[..., before.shape[-1] :]
            before = joined[..., joined.shape[-1] - self._tail_reach :]

    def _windows(self, samples: Any, start: int, end: int, num_frames: int) -> Iterator[Any]:
        """The input of the LSTM for the frames from ``start`` to ``end``, window by window."""
        size = self._window if self._causal else num_frames
        for first, last in _pieces(start, end, size):
            early = max(0, first - self._context) if self._causal else 0
            stop = samples.shape[-1] if last == num_frames else last * self._hop_length
            hidden = _through(self._front, samples[..., early * self._hop_length : stop])
            yield hidden[..., first - early :]


def quicken(encoder: Any) -> None:
    """Change an encoder of EnCodec to compute the same in less time.

    Reflections are copied instead of looked up one by one, and activations written over their
    input where nothing else reads it.
    """
    import torch

    for module in encoder.modules():
        if hasattr(module, "_pad1d"):
            module._pad1d = padded
        elif type(module).__name__ == "EncodecResnetBlock":
            for layer in list(module.block)[1:]:  # the first one's input is added at the end
                if isinstance(layer, torch.nn.ELU):
                    layer.inplace = True


def padded(hidden: Any, paddings: Sequence[Any], mode: str = "zero", value: float = 0.0) -> Any:
    """Pad as EnCodec's ``_pad1d`` does."""
    from torch.nn.functional import pad

    left, right = (int(padding) for padding in paddings)
    length = hidden.shape[-1]
    if not left and not right:
        return hidden
    if mode != "reflect":
        return pad(hidden, (left, right), mode, value)
    lacking = max(0, max(left, right) - length + 1)  # zeros, to have something to reflect
    if lacking:
        return pad(pad(hidden, (0, lacking)), (left, right), mode)[..., : length + left + right]
    out = hidden.new_empty((*hidden.shape[:-1], left + length + right))
    out[..., left : left + length] = hidden
    if left:
        out[..., :left] = hidden[..., 1 : left + 1].flip(-1)
    if right:
        out[..., left + length :] = hidden[..., length - 1 - right : length - 1].flip(-1)
    return out


def _pieces(start: int, end: int, size: int) -> list[tuple[int, int]]:
    """From ``start`` to ``end`` in steps of ``size``; the last one is up to twice as long."""
    count = max(1, (end - start) // size) if size else 1
    starts = [start + i * size for i in range(count)]
    return list(zip(starts, [*starts[1:], end], strict=True))


def _joined(pieces: Iterator[Any]) -> Any:
    """Concatenate in time."""
    import torch

    first, *others = pieces
    return torch.cat([first, *others], dim=-1) if others else first


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _vectors(layers: Sequence[Any], hop_length: int) -> int | None:
    """The least number of frames that are whole vectors in both halves of each ELU's input; None
    where a channel lies in both halves."""
    frames, stride, is_activated = 1, 1, False
    for layer in layers:
        for module in layer.modules():
            if type(module).__name__ == "ELU":
                is_activated = True
            elif hasattr(module, "conv") and hasattr(module, "padding_total"):
                if is_activated:
                    channels = module.conv.in_channels
                    if channels % 2:
                        return None
                    half = channels // 2 * hop_length // stride
                    frames = math.lcm(frames, VECTORS // math.gcd(VECTORS, half))
                is_activated = False
                stride *= module.conv.stride[0]
    return frames


def _through(layers: Sequence[Any], hidden: Any) -> Any:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def _fewest(layers: Sequence[Any], hop_length: int) -> int:
    """The least number of values that a convolution gets for a frame."""
    fewest, stride = hop_length, 1
    for conv in _convolutions(layers):
        fewest = min(fewest, conv.in_channels * hop_length // stride)
        stride *= conv.stride[0]
    return max(1, fewest)


def _reach(layers: Sequence[Any]) -> int:
    """The most input samples before its own that a frame may depend on."""
    reach, stride = 0, 1
    for conv in _convolutions(layers):
        reach += (conv.kernel_size[0] - 1) * conv.dilation[0] * stride
        stride *= conv.stride[0]
    return reach + stride


def _convolutions(layers: Sequence[Any]) -> Iterator[Any]:
    """The convolutions in EnCodec's own, in order."""
    for layer in layers:
        for module in layer.modules():
            if hasattr(module, "conv") and hasattr(module, "padding_total"):
                yield module.conv
