"""Pointwise layers that give on one thread the result that PyTorch gives on several.

Codes are computed on one thread, and must equal those of the model called on a machine with
several cores. Two kinds of layers differ there:

- Convolutions of kernel 1. On two threads or more PyTorch computes them by oneDNN, whose sums do
  not depend on the number; on one thread it multiplies matrices, which rounds otherwise.
- ELU. PyTorch divides what is large among the threads, takes vectors of it, and computes what is
  left at the end of each one's share by another function, which rounds otherwise.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["SHARED", "SMALL", "VECTORS", "as_on_threads"]

SMALL: Final = 20_480
"""Up to so many elements of input PyTorch multiplies matrices on any number of threads."""

SHARED: Final = 32_768
"""Up to so many elements PyTorch computes on one thread; more are divided among threads."""

VECTORS: Final = 32
"""Elements that ELU takes at a time; the rest at the end is computed by another function."""


def as_on_threads(model: Any) -> None:
    """Make a model's convolutions of kernel 1 do on one thread what they do on several, and its
    ELUs what they do on two.

    Call it when the weights are final: it holds on to them.
    """
    import torch

    if next(model.parameters()).device.type != "cpu":
        return
    for module in model.modules():
        if type(module) is torch.nn.ELU:
            module.forward = _Halves(module)
        elif (
            torch.backends.mkldnn.is_available()
            and isinstance(module, torch.nn.Conv1d)
            and (module.kernel_size, module.stride, module.dilation) == ((1,), (1,), (1,))
            and module.padding in {(0,), 0, "valid"}
        ):
            module.forward = _Pointwise(module)


class _Pointwise:
    """The forward pass of a convolution of kernel 1."""

    def __init__(self, conv: Any) -> None:
        self._usual = conv.forward
        self._weight = conv.weight.detach()[:, :, None]
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._groups = conv.groups

    def __call__(self, hidden: Any) -> Any:
        import torch

        if hidden.ndim != 3 or (hidden.numel() <= SMALL and len(hidden) == self._groups == 1):
            return self._usual(hidden)
        found = torch.mkldnn_convolution(
            hidden[:, :, None], self._weight, self._bias, (0, 0), (1, 1), (1, 1), self._groups
        )
        return found[:, :, 0]


class _Halves:
    """The forward pass of an ELU, as if two threads had half of it each."""

    def __init__(self, elu: Any) -> None:
        self._elu = elu
        self._usual = elu.forward

    def __call__(self, hidden: Any) -> Any:
        import torch

        flat = _in_order(hidden)
        if flat is None or hidden.numel() <= SHARED:
            return self._usual(hidden)
        found = hidden if self._elu.inplace else torch.empty_like(hidden)
        into = _in_order(found)
        half = -(-hidden.numel() // 2)
        for part in (slice(None, half), slice(half, None)):
            torch.ops.aten.elu.out(flat[part], self._elu.alpha, out=into[part])
        return found


def _in_order(hidden: Any) -> Any:
    """All elements in the order of memory, or None where they are not contiguous."""
    if hidden.is_contiguous():
        return hidden.view(-1)
    by_time = hidden.permute(hidden.ndim - 1, *range(hidden.ndim - 1))
    return by_time.view(-1) if by_time.is_contiguous() else None
