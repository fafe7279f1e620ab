"""An oracle for what a network leads to: the garbage collector's own view, with what it does not follow added."""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

from torch import nn

__all__ = ["reachable", "still_reachable"]

_SKIPPED = (type, types.ModuleType, types.CodeType, types.FrameType)


def reachable(root: Any) -> set[int]:
    """``id`` of everything that can be reached from an object; not by way of classes, modules and global names."""
    seen = {id(root): root}
    pending = [root]
    while pending:
        obj = pending.pop()
        skipped = {id(obj.__globals__)} if isinstance(obj, types.FunctionType) else set()
        children = [c for c in gc.get_referents(obj) if id(c) not in skipped]
        if isinstance(obj, weakref.ref):
            children.append(obj())
        for child in children:
            if id(child) not in seen and not issubclass(type(child), _SKIPPED):
                seen[id(child)] = child
                pending.append(child)
    return set(seen)


def still_reachable(old: nn.Module, converted: nn.Module) -> list[str]:
    """Names of modules and parameters of ``old`` that can be reached from what it was converted to and are no part
    of that: those of a copied network, or those that were replaced."""
    kept = {id(m) for m in converted.modules()} | {id(t) for t in (*converted.parameters(), *converted.buffers())}
    found = reachable(converted) - kept
    members = (*old.named_modules(), *old.named_parameters())
    return [name for name, member in members if id(member) in found]
