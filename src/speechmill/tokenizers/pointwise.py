"""Convolutions of kernel 1, with the same result on one thread as on several.

On two threads or more PyTorch computes them by oneDNN, whose sums do not depend on the number; on
one thread it multiplies matrices, which rounds otherwise. Codes are computed on one thread, and are
to be those that a user gets who calls the model on a machine with several cores.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["SMALL", "as_on_threads"]

SMALL: Final = 20_480
"""Inputs of no more elements PyTorch multiplies as matrices on any number of threads."""


def as_on_threads(model: Any) -> None:
    """Make a model's convolutions of kernel 1 do on one thread what they do on several.

    It is to be called when the weights are what they will be: they are kept.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if (
            isinstance(module, torch.nn.Conv1d)
            and (module.kernel_size, module.stride, module.dilation) == ((1,), (1,), (1,))
            and module.padding in {(0,), 0, "valid"}
            and module.weight.device.type == "cpu"
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
