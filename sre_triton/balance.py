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
from sre_triton.observing import check_network

__all__ = ["BalancedSteps", "balance_steps", "balance_weights"]


@torch.no_grad()
def balance_weights(model: nn.Module) -> None:
    """Scales freshly drawn ring weights in place so that every ring adds as much variance to the output.

    The weights of a ring of n taps are divided by sqrt(n), and all weights of a layer multiplied by one factor that
    keeps the variance of its output (for input without correlation between pixels) what it was. Every ring
    convolution in ``model`` is scaled; other layers are left alone. Call it once, before training. Weights that are
    sharded by FSDP2 are scaled where they are.

    Args:
        model: a network, or a ring convolution itself; with FSDP2 after ``fully_shard``.

    Raises:
        ValueError: a ring convolution does not hold its weight as a parameter (parametrized, weight-normalised,
            pruned), or it is sharded by ring. Nothing has been changed then.
        TypeError: ``model`` is no module.
    """
    for weight, taps in _ring_weights(model).items():
        local = _local(weight)
        local.mul_((taps.mean() / taps).sqrt().to(local))


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
        optimizer: steps on the parameters that it holds, and on those of groups that are added to it later, are
            changed from here on, by hooks of the optimiser; its state and state dict stay as they are.
        model: its ring convolutions say how many taps a ring has; other parameters step as before. Convolutions
            that are added to it later are not seen. With FSDP2, the model after ``fully_shard``. One without ring
            convolutions is trained as without this.

    Returns:
        A handle whose ``remove()`` undoes this.

    Raises:
        ValueError: a ring convolution does not hold its weight as a parameter (parametrized, weight-normalised,
            pruned), or it is sharded by ring; or the optimiser holds none of the ring weights. The latter at a step
            is a RuntimeError: the weights were replaced since.
        TypeError: ``model`` is no module.

    Examples:
        >>> network = sre_triton.SREUNet(in_channels=1)
        >>> sre_triton.balance_weights(network)
        >>> optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        >>> handle = sre_triton.balance_steps(optimizer, network)
    """
    taps = _ring_weights(model)

    def held() -> list[Tensor]:
        return [weight for group in optimizer.param_groups for weight in group["params"] if weight in taps]

    if taps and not held():
        raise ValueError("optimizer holds none of the ring weights of model, so there is nothing to balance")
    shares = {weight: 1 / taps[weight] for weight in taps}
    before: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(*_: Any) -> None:
        before.clear()  # of a step that raised
        if taps and not (weights := held()):
            raise RuntimeError(
                "the optimizer whose steps are balanced holds none of the ring weights any more: call balance_steps "
                "again after they were replaced"
            )
        for weight in weights if taps else ():
            local = _local(weight)
            if shares[weight].device != local.device or shares[weight].dtype != local.dtype:
                shares[weight] = shares[weight].to(local)
            before.append((local, local.detach().clone(), shares[weight]))

    @torch.no_grad()
    def shorten(*_: Any) -> None:
        for weight, old, share in before:
            weight.copy_(old.lerp(weight, share))
        before.clear()

    return BalancedSteps(optimizer.register_step_pre_hook(keep), optimizer.register_step_post_hook(shorten))


def _ring_weights(model: nn.Module) -> dict[Tensor, Tensor]:
    """Ring weights, each once if layers share it, and the taps of their rings, (rings,); by the taps' shares where
    rings are anti-aliased."""
    check_network("model", model)
    weights: dict[Tensor, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, RingConvNd):
            weight = layer._parameters.get("weight")
            label = f"{name!r}, {type(layer).__name__},"
            if weight is None:
                raise ValueError(
                    f"{label} does not hold its weight as a parameter (parametrized, weight_norm, pruned?), so what an "
                    "optimiser changes are no ring weights: balance before, or remove that"
                )
            if any(p.is_shard(weight.dim() - 1) for p in getattr(weight, "placements", ())):
                raise ValueError(f"{label} has a weight that is sharded by ring: shard it by channels")
            weights[weight] = torch.from_numpy(layer.geometry.weights.sum(axis=1))
    return weights


def _local(weight: Tensor) -> Tensor:
    """The part of a weight that this process holds: all of it, or a shard of a DTensor. Rings are its last
    dimension."""
    local = getattr(weight.detach(), "to_local", None)
    part: Tensor = weight.detach() if local is None else local()
    return part
