"""Tells which backend each ring convolution of a module takes, and why, and who adds invariants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sre_triton.backends import native
from sre_triton.backends.base import Call, Kind
from sre_triton.invariants.layers import AddInvariantsNd
from sre_triton.invariants.passes import way_to_add
from sre_triton.layers import RingConvNd
from sre_triton.observing import check_network, unchanged
from sre_triton.planning.plan import Plan, plan_call, recording
from sre_triton.planning.request import current_backend

__all__ = ["explain"]


def explain(module: nn.Module, *inputs: Any) -> str:
    """Runs ``module(*inputs)`` once without gradients and returns the plan of its ring convolutions in words.

    Statistics, buffers and random numbers that the call changes are restored.

    Args:
        module: a ring convolution layer or a network that holds some.
        inputs: what the module is called with; on real devices, since plans are made when operators run.

    Returns:
        One paragraph per ring convolution that ran, in order: the layer, its input, and the backend of
        the forward and the backward pass with the reason for each. One per layer that adds invariants, too: its input,
        and what computes it. Last, where tensors are on the CPU and the native kernel is not built: how to build it.

    Raises:
        RuntimeError: a requested backend cannot run one of the calls.
        TypeError: ``module`` is no module.

    Examples:
        >>> layer = sre_triton.SREConv2d(16, 16, 5, padding=2)
        >>> with sre_triton.backend("ringwise"):
        ...     print(sre_triton.explain(layer, torch.randn(1, 16, 8, 8)))
        SREConv2d(16, 16, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
          fine side (1, 16, 8, 8), torch.float32, cpu
          forward: ringwise (requested)
          backward: ringwise (requested)
    """
    check_network("module", module)
    names: list[str] = []

    def enter(label: str, layer: nn.Module, args: Any) -> None:
        names.append(f"{label}: {layer}" if label else str(layer))

    added: list[tuple[int, str]] = []  # before which ring convolution, and its paragraph

    def add(label: str, layer: Any, args: Any) -> None:
        position = sum(call.kind in ("forward", "transpose") for call, _ in records)
        title = f"{label}: {layer}" if label else str(layer)
        z = args[0]
        place = f"  input {tuple(z.shape)}, {z.dtype}, {z.device.type}"
        added.append((position, f"{title}\n{place}\n  forward and backward: {way_to_add(z, layer.spec)}"))

    enterings: dict[type[nn.Module], Callable[..., None]] = {RingConvNd: enter, AddInvariantsNd: add}
    hooks = [
        layer.register_forward_pre_hook(partial(entering, name))
        for name, layer in module.named_modules()
        for kind, entering in enterings.items()
        if isinstance(layer, kind)
    ]
    try:
        with unchanged(module, *inputs), recording() as records, torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    calls = [(call, plan) for call, plan in records if call.kind in ("forward", "transpose")]
    if not calls and not added:
        return "no ring convolution ran"
    # Ring functions called outside a layer have no name of their own.
    titles = names if len(names) == len(calls) else [f"ring convolution {i}" for i in range(len(calls))]
    paragraphs = [_paragraph(title, call, plan) for title, (call, plan) in zip(titles, calls, strict=True)]
    for position, paragraph in reversed(added):
        paragraphs.insert(position, paragraph)
    advice = native.advice()
    if advice and any(call.device.type == "cpu" for call, _ in calls):
        paragraphs.append(advice)
    return "\n".join(paragraphs)


def _paragraph(title: str, call: Call, plan: Plan) -> str:
    passes: dict[str, Kind] = {"input": call.kind, "backward": "backward"}
    if call.kind == "transpose":
        passes = {"input": "transpose", "grad of input": "forward", "grad of weight": "weight_grad"}
    shape = (call.batch, call.in_channels, *call.input_size)
    lines = [f"{title}", f"  fine side {shape}, {call.dtype}, {call.device.type}"]
    for label, kind in passes.items():
        one = call._replace(kind=kind)
        chosen = plan if kind == call.kind else plan_call(one, current_backend())
        replayed = plan_call(one, current_backend(), in_graph=True)
        other = f"; in a CUDA graph: {replayed.backend}" if replayed.backend != chosen.backend else ""
        lines.append(f"  {'forward' if label == 'input' else label}: {chosen.backend} ({chosen.reason}){other}")
    return "\n".join(lines)
