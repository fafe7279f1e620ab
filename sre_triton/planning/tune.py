"""Measuring the launch options of the Triton kernels for one model on the GPU of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sre_triton.planning.request import backend

if TYPE_CHECKING:
    from sre_triton.backends.triton.tuning import Tuned

__all__ = ["tune"]


def tune(
    model: nn.Module,
    *inputs: Any,
    backward: bool = True,
    force: bool = False,
    timer: Callable[[Callable[[], object]], float] | None = None,
) -> list[Tuned]:
    """Times the Triton kernels of every ring convolution of ``model`` with all launch options worth trying.

    Takes seconds to minutes per layer. The fastest options are used from then on, in this process and, through a
    file in ``SRE_TRITON_CACHE_DIR`` (by default ``~/.cache/sre_triton``), in others on the same GPU, for every
    batch size. Parameters, their gradients, buffers and random states are left as they are.

    With the environment variable ``SRE_TRITON_AUTOTUNE=1`` every process does the same on its own as it meets new
    layers, wherever the plan takes Triton.

    Args:
        model: what holds the layers; runs on the Triton backend in its current mode, whatever the plan would choose.
        inputs: what it is called with, of the dtype, layout and image size that count.
        backward: also tune the gradients of the parameters that require one.
        force: measure again what an earlier search has found.
        timer: returns the milliseconds of a call. None uses the GPU's own clock; the interpreter has none.

    Returns:
        One entry per kernel and bucket that was measured: the options, their time, and that of the default.

    Raises:
        RuntimeError: model and inputs are not on one GPU that Triton runs on, or a layer cannot run on this backend.
        ImportError: Triton is not installed.
    """
    from sre_triton.backends.triton import tuning

    _check_device(model, inputs, timer)
    with _untouched(model), tuning.searching(timer, force) as search, backend("triton"):
        with torch.set_grad_enabled(backward):
            output = model(*inputs)
        if backward:
            _backward(model, output)
    return search.found


def _check_device(model: nn.Module, inputs: Any, timer: object) -> None:
    import triton

    tensors = [*model.parameters(), *model.buffers(), *(leaf for leaf in tree_leaves(inputs) if torch.is_tensor(leaf))]
    devices = {str(tensor.device) for tensor in tensors}
    kinds = {device.partition(":")[0] for device in devices}
    is_possible = kinds == {"cpu"} and timer if triton.knobs.runtime.interpret else kinds <= {"cuda", "xpu"}
    if len(devices) == 1 and is_possible:
        return
    where = ", ".join(sorted(devices)) or "no device"
    hint = "; Triton's interpreter can be tuned with a timer only" if triton.knobs.runtime.interpret else ""
    raise RuntimeError(f"tune() times kernels on a GPU: model and inputs must be on one, got {where}{hint}")


def _backward(model: nn.Module, output: Any) -> None:
    """Gradients of every output in every parameter, without touching ``.grad``."""
    outputs = [leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf) and leaf.requires_grad]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if outputs and parameters:
        seeds = [torch.ones_like(tensor) for tensor in outputs]
        torch.autograd.grad(outputs, parameters, seeds, allow_unused=True)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts back buffers, such as running means, and the random states."""
    buffers: list[tuple[Tensor, Tensor]] = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
