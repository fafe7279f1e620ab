"""Training steps of whole networks: eager, as one CUDA graph, and compiled."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bench.gpu.cases import Network
from bench.gpu.timing import step_seconds

__all__ = ["BACKENDS", "MODES", "measure", "problem"]

BACKENDS = ("dense", "triton", "auto")
MODES = ("eager", "graph", "compiled")
_WARM_STEPS = 3
_TOLERANCE = 0.1


def measure(network: Network, backend: str, mode: str) -> dict[str, Any]:
    """Median milliseconds of forward, loss and backward in bfloat16, and what they compute. Job of a process.

    Returns:
        ``ms``, ``loss`` and ``gradient``, the norm of all gradients: the same weights and images for every backend.
    """
    import sre_triton

    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model: Any = network.build().cuda()
    model.to(memory_format=torch.channels_last)
    x, parameters = network.input("cuda"), list(model.parameters())
    run = torch.compile(model) if mode == "compiled" else model

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        # Within a graph the cast weights must be cast at every replay.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=mode != "graph"):
            loss = run(x).float().square().mean()
        loss.backward()
        return loss.detach()

    with sre_triton.backend(backend):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_STEPS):
                loss = step()
        torch.cuda.current_stream().wait_stream(stream)
        if mode == "graph":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = step()
            seconds = step_seconds(graph.replay)
        else:
            seconds = step_seconds(step)
    gradients = torch.stack([p.grad.float().norm() for p in parameters if p.grad is not None])
    return {"ms": 1e3 * seconds, "loss": float(loss), "gradient": float(gradients.norm())}


def problem(found: dict[str, Any], dense: dict[str, Any] | None) -> str | None:
    """What is wrong with a network's result; None if nothing is, or if there is no dense one to hold it against."""
    for name in ("loss", "gradient"):
        value = found[name]
        if not math.isfinite(value):
            return f"{name} is {value}"
        if dense is not None and abs(value - dense[name]) > _TOLERANCE * abs(dense[name]):
            return f"{name} is {value:.4g}, dense {dense[name]:.4g}"
    return None
