"""Looking at a network without changing it."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["check_network", "unchanged"]


def check_network(name: str, value: Any) -> None:
    """Raises TypeError if an argument by this name is no network."""
    if not isinstance(value, nn.Module):
        what = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} must be a torch.nn.Module, got {what}")


@contextmanager
def unchanged(*observed: Any) -> Iterator[None]:
    """Whatever runs within leaves networks and generators of random numbers as they were.

    That is parameters and buffers, modes, attributes and what lists, dictionaries and sets among these hold. What
    hooks do to other objects is not undone.

    Args:
        observed: networks, or functions that call one: bound methods, closures, partial functions. Tensors say
            which GPUs' generators are meant, as do those of the networks.
    """
    modules = list({id(m): m for root in observed for net in _networks(root) for m in net.modules()}.values())
    tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    devices = {t.device for t in (*tensors, *(o for o in observed if isinstance(o, Tensor)))}
    kept = [(t, t.detach().clone()) for t in tensors if not is_lazy(t)]
    attributes = [(vars(m), dict(vars(m))) for m in modules]
    contents = {
        id(value): (value, value.copy())
        for _, own in attributes
        for value in own.values()
        if type(value) in (list, dict, set)
    }
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(sorted({d.index or 0 for d in devices if d.type == "cuda"})):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for value, before in contents.values():
            if isinstance(value, list):
                value[:] = before
            else:
                value.clear()
                value.update(before)
        for own, values in attributes:
            own.clear()
            own.update(values)
        for tensor, before in kept:
            # By its data: what was saved for a backward pass elsewhere is as it was.
            if not tensor.is_meta and not torch.equal(tensor.detach(), before):
                tensor.data.copy_(before)


def _networks(obj: Any) -> Iterator[nn.Module]:
    """The networks that a function calls, as far as it says so."""
    if isinstance(obj, nn.Module):
        yield obj
    elif isinstance(obj, types.MethodType):
        yield from _networks(obj.__self__)
    elif isinstance(obj, functools.partial):
        for held in (obj.func, *obj.args, *obj.keywords.values()):
            yield from _networks(held)
    elif isinstance(obj, types.FunctionType):
        for held in (*_in_closure(obj), *(obj.__defaults__ or ())):
            if isinstance(held, nn.Module | types.MethodType | functools.partial):
                yield from _networks(held)


def _in_closure(function: Callable[..., Any]) -> Iterator[object]:
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it has no value yet
            continue
