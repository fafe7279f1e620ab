"""Padding that may be wider than the map it is laid around."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["RepeatedPad"]


class RepeatedPad(nn.Module):
    """Reflects or repeats maps (N, C, *space) or (C, *space) around their edges as often as the padding asks for.

    Equal to ``F.pad(x, ..., mode=mode)`` where that runs: there, a reflection has to be smaller than the map.

    Args:
        padding: pixels at each end of each spatial dimension.
        mode: "reflect" or "circular". A single pixel is reflected to itself.
    """

    __constants__ = ["mode", "padding"]

    def __init__(self, padding: tuple[int, ...], mode: str) -> None:
        super().__init__()
        if mode not in ("reflect", "circular"):
            raise ValueError(f"mode must be 'reflect' or 'circular', got {mode!r}")
        self.padding = padding
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *space) to (N, C, *(space + 2 * padding))."""
        # Arithmetic on sizes and methods of tensors alone, so that torch.fx can follow.
        for i, pad in enumerate(self.padding):
            axis = i - len(self.padding)
            n = input.shape[axis]
            places = input.new_ones((n + 2 * pad,)).long().cumsum(0) - (1 + pad)
            if self.mode == "circular":
                places = places.remainder(n)
            else:
                period = 2 * n - 2 + 2 // (n * n + n)  # 1 for a single pixel
                places = (n - 1) - (places.remainder(period) - (n - 1)).abs()
            input = input.index_select(axis, places)
        return input

    def extra_repr(self) -> str:
        """Its arguments."""
        return f"{self.padding}, mode={self.mode!r}"
