"""Where in a network a symmetry is lost: which module gets symmetric inputs and returns an asymmetric output.

A module inside a network has no image to turn; what its input turns into when the image turns is taken
from the network itself. Every tensor that modules receive and return is compared between a run on the image
and a run on the image moved by ``g``. The group is made of a few such ``g``; what commutes with them commutes with all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.equivariance import GridSymmetry, _relative, _tensors, grid_symmetries

__all__ = ["ModuleError", "breaking", "generators", "module_errors"]


@dataclass
class ModuleError:
    """Largest relative errors of one call of one module, in the order in which calls end.

    Attributes:
        name: fully qualified, empty for the network.
        module: the module.
        inputs: of the tensors that it received, None if it received none that the symmetry acts upon.
        output: of those that it returned, likewise.
        input_shape: of the first tensor that it received, None if there was none.
        caller: the call within which this one was made.
    """

    name: str
    module: nn.Module
    inputs: float | None = None
    output: float | None = None
    input_shape: tuple[int, ...] | None = None
    caller: ModuleError | None = field(default=None, repr=False)
    _received: list[Tensor] = field(default_factory=list, repr=False)
    _returned: list[Tensor] = field(default_factory=list, repr=False)


def breaking(calls: list[ModuleError], tolerance: float) -> list[ModuleError]:
    """The calls in which the symmetry is lost: the inputs still had it and the output has not. What such a call
    is made within is not counted as well."""
    found = []
    counted: set[int] = set()
    for call in calls:  # from the inside out
        inputs_have_it = call.inputs is None or call.inputs <= tolerance
        output_has_it = call.output is None or call.output <= tolerance
        if inputs_have_it and not output_has_it and id(call) not in counted:
            found.append(call)
            counted.add(id(call))
        if id(call) in counted:
            counted.add(id(call.caller))
    return found


def generators(ndim: int, group: str) -> tuple[GridSymmetry, ...]:
    """A few symmetries of the grid of which all others of a group ("rotations", "flips", "all") are made."""
    axes = tuple(range(ndim))
    swaps = [(*axes[:i], i + 1, i, *axes[i + 2 :]) for i in range(ndim - 1)]
    moves = {
        "all": [*(GridSymmetry(swap, ()) for swap in swaps), GridSymmetry(axes, (0,))],
        "rotations": [GridSymmetry(swap, (i,)) for i, swap in enumerate(swaps)],
        "flips": [GridSymmetry(axes, (axis,)) for axis in axes],
    }
    return tuple(moves[group])


def module_errors(model: nn.Module, sample: Tensor, group: str = "all") -> list[ModuleError]:
    """The errors of every call of every module while ``model`` runs on ``sample`` and on its images under a group.

    All tensors between modules are kept during the measurement.

    Args:
        sample: (N, C, *space) in 1 to 3 dimensions.
        group: see :func:`sre_triton.grid_symmetries`.

    Raises:
        RuntimeError: other modules are called when the sample is turned.
    """
    ndim = sample.dim() - 2
    calls = list(_record(model, sample))
    grids: set[tuple[int, ...]] = {tuple(sample.shape[2:])}
    for call in calls:
        grids |= {tuple(t.shape[2:]) for t in (*call._received, *call._returned) if t.dim() == ndim + 2}
    # Turned, an image that is not square has another size, at which the network is another function.
    moves = generators(ndim, group) if len(set(sample.shape[2:])) == 1 else grid_symmetries(ndim, group)
    for g in moves:
        moved = list(_record(model, g(sample)))
        if [c.name for c in moved] != [c.name for c in calls]:
            raise RuntimeError(f"the modules that the network calls depend on the image's orientation ({g})")
        for call, other in zip(calls, moved, strict=True):
            call.inputs = _larger(call.inputs, _compare(call._received, other._received, g, grids))
            call.output = _larger(call.output, _compare(call._returned, other._returned, g, grids))
    for call in calls:
        call._received, call._returned = [], []
    return calls


def _record(model: nn.Module, sample: Tensor) -> list[ModuleError]:
    """One entry for each call of each module, with copies of its tensors: modules may work in place."""
    finished: list[ModuleError] = []
    running: list[ModuleError] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        # A copy of a weak proxy is a module of its own, with the hooks of the one that it stood for.
        name = names.get(module, f"({type(module).__name__})")
        call = ModuleError(name, module, caller=running[-1] if running else None)
        call._received = [t.detach().clone() for t in _tensors((*args, *kwargs.values()))]
        if call._received:
            call.input_shape = tuple(call._received[0].shape)
        running.append(call)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        call = running.pop()
        call._returned = [t.detach().clone() for t in _tensors(output)]
        finished.append(call)

    handles = []
    try:
        for module in names:
            if isinstance(module, torch.jit.ScriptModule):  # has no hooks on calls
                continue
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return finished


def _larger(a: float | None, b: float | None) -> float | None:
    errors = [e for e in (a, b) if e is not None]
    return max(errors, key=lambda e: math.inf if math.isnan(e) else e, default=None)


def _compare(
    reference: Sequence[Tensor], moved: Sequence[Tensor], g: GridSymmetry, grids: set[tuple[int, ...]]
) -> float | None:
    if len(reference) != len(moved):
        return math.inf
    worst = None
    for a, b in zip(reference, moved, strict=True):
        if (a.is_floating_point() or a.is_complex()) and a.numel():
            worst = _larger(worst, min((e for e in _errors(a, b, g, grids)), default=None))
    return worst


def _errors(a: Tensor, b: Tensor, g: GridSymmetry, grids: set[tuple[int, ...]]) -> Iterator[float]:
    """The error of ``b`` as ``a`` moved by ``g``, for each way in which ``g`` may act upon a tensor. The shape alone
    tells which are possible: upon a map with its channels first or last, upon the pixels of a map in a row, or not at
    all."""
    ndim = len(g.axes)
    if a.dim() == ndim + 2:
        yield _relative(b, a, g, ndim, None)
        yield _relative(b.movedim(-1, 1), a.movedim(-1, 1), g, ndim, None)
    elif a.dim() == 2:
        yield _relative(b, a, g, ndim, None)
    elif a.dim() == 3:
        for grid in grids:
            for x, y in ((a.mT, b.mT), (a, b)):  # (N, pixels, C), (N, C, pixels)
                if 0 <= x.shape[-1] - math.prod(grid) <= _MOST_EXTRA_TOKENS and y.shape == x.shape:
                    yield _error_of_row(x, y, g, grid)


# In front of the pixels of a row there may be tokens that belong to none, as of a class.
_MOST_EXTRA_TOKENS = 8


def _error_of_row(x: Tensor, y: Tensor, g: GridSymmetry, grid: tuple[int, ...]) -> float:
    """The error of (N, C, tokens), whose last tokens are the pixels of a grid; those before do not move."""
    ndim, extra = len(grid), x.shape[-1] - math.prod(grid)
    before = x[..., extra:].unflatten(-1, grid)
    after = y[..., extra:].unflatten(-1, tuple(grid[axis] for axis in g.axes))
    error = _relative(after, before, g, ndim, None)
    if extra:
        error = max(error, _relative(y[..., :extra].flatten(1), x[..., :extra].flatten(1), g, ndim, None))
    return error
