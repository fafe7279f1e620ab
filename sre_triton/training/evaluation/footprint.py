"""What a network costs: parameters, time per image and peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sre_triton.training.evaluation.fresh import in_fresh_process

__all__ = ["interleaved_ms", "parameter_count", "peak_training_memory"]


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@torch.no_grad()
def interleaved_ms(networks: Mapping[str, nn.Module], shape: Sequence[int], rounds: int = 7) -> dict[str, float]:
    """Median milliseconds per image at inference.

    The networks take turns, one run each, so that a slow spell of the machine slows all of them.

    Args:
        networks: in evaluation mode, on one device.
        shape: (N, C, *space) of the batch.
    """
    device = next(next(iter(networks.values())).parameters()).device
    batch = torch.rand(tuple(shape), device=device)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(rounds + 2):
        for name, network in networks.items():
            _wait(device)
            start = time.perf_counter()
            network(batch)
            _wait(device)
            if turn >= 2:  # the first runs warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) / shape[0] for name, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class _Step:
    """A training step to be measured in a process of its own."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    device: str

    def __call__(self) -> float:
        network = self.build().to(self.device).train()
        x = torch.rand(self.shape, device=self.device)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            _once(network, x)
            return torch.cuda.max_memory_allocated() / 2**20
        _once(network, x[:1].repeat(2, *[1] * (x.dim() - 1)))  # whatever is allocated once and for all
        _CLEAR.write_text("5")  # the peak so far, which a process inherits from the one that started it
        before = _peak()
        _once(network, x)
        return (_peak() - before) / 2**10


_CLEAR = Path("/proc/self/clear_refs")


def _peak() -> int:
    """The process's largest resident size since it was cleared, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _once(network: nn.Module, x: Tensor) -> None:
    network(x).float().square().mean().backward()


def peak_training_memory(build: Callable[[], nn.Module], shape: Sequence[int], device: str) -> float | None:
    """MiB that a training step on a batch (N, C, *space) takes at its peak, in a fresh process.

    On CUDA all that PyTorch allocates; on a CPU what the process grows by beyond a step on two images.

    Args:
        build: makes the network; picklable.

    Returns:
        None where the system does not tell (a CPU anywhere but on Linux).
    """
    if device == "cpu" and not _CLEAR.is_file():
        return None
    return in_fresh_process(_measured, _Step(build, tuple(shape), device), torch.get_num_threads())


def _measured(step: _Step, threads: int) -> float:
    torch.set_num_threads(threads)
    return step()
