"""Rings of many taps and of few, learning at one pace.

A ring weight counts once for each tap of its ring. An optimiser that steps as far on every weight, as Adam does, so
changes the response of a 9x9 layer to a smooth image 32 times as fast by its outermost ring as by its centre, and
weights drawn alike begin as a blur. A step that is safe for the large rings is then too short for the small ones, which
hold the detail. The functions here even both out. They change neither the layers nor what is saved of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sre_triton.layers import RingConvNd

__all__ = ["BalancedSteps", "balance_steps", "balance_weights"]


@torch.no_grad()
def balance_weights(model: nn.Module) -> None:
    """Scales freshly drawn ring weights in place so that every ring adds as much variance to the output.

    The weights of a ring of n taps are divided by sqrt(n), and all weights of a layer multiplied by one factor that
    keeps the variance of its output (for input without correlation between pixels) what it was. Every ring
    convolution in ``model`` is scaled; other layers are left alone. Call it once, before training.
    """
    for weight, taps in _ring_weights(model).items():
        weight.mul_((taps.mean() / taps).sqrt().to(weight))


class BalancedSteps:
    """What :func:`balance_steps` attached to an optimiser; :meth:`remove` takes it off again."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Steps are as long as without it from here on."""
        for handle in self._handles:
            handle.remove()


def balance_steps(optimizer: torch.optim.Optimizer, model: nn.Module) -> BalancedSteps:
    """Divides every step on a ring weight by the number of taps of its ring.

    The learning rate is then that of the centre, and 5 to 10 times what one would give the same network without: 5e-3
    for Adam and 9x9 rings. For optimisers that normalise gradients element by element: Adam and its kin, Adadelta,
    RMSprop. A decay of the weights that is part of the step is divided, too.

    Args:
        optimizer: steps on the parameters that it holds are changed from here on, by hooks of the optimiser; its state
            and state dict stay as they are.
        model: its ring convolutions say how many taps a ring has; other parameters step as before. Convolutions
            that are added to it later are not seen.

    Returns:
        A handle whose ``remove()`` undoes this.
    """
    taps = _ring_weights(model)
    held = [weight for group in optimizer.param_groups for weight in group["params"] if weight in taps]
    shares = {weight: (1 / taps[weight]).to(weight) for weight in held}
    before: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(*_: Any) -> None:
        before[:] = [(weight, weight.detach().clone(), share.to(weight)) for weight, share in shares.items()]

    @torch.no_grad()
    def shorten(*_: Any) -> None:
        for weight, old, share in before:
            weight.copy_(old.lerp(weight, share))
        before.clear()

    return BalancedSteps(optimizer.register_step_pre_hook(keep), optimizer.register_step_post_hook(shorten))


def _ring_weights(model: nn.Module) -> dict[Tensor, Tensor]:
    """Ring weights, each once if layers share it, and the taps of their rings, (rings,); by the taps' shares where
    rings are anti-aliased."""
    layers = (module for module in model.modules() if isinstance(module, RingConvNd))
    return {layer.weight: torch.from_numpy(layer.geometry.weights.sum(axis=1)) for layer in layers}
