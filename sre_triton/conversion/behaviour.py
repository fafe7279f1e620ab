"""What a layer carries or does beside what its class is known for: hooks, attributes, methods, parameters.

:func:`sre_triton.convert` and :func:`sre_triton.fold` follow one rule. Hooks on calls and attributes go over to the
replacement of a layer. A subclass with methods of its own counts as another kind of layer. Whatever else the
replacement could not carry is refused.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Container
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from sre_triton.conversion.methods import code_names

__all__ = [
    "as_parameter",
    "carry",
    "changes_of_class",
    "copied",
    "drop_call_hooks",
    "gradient_hooks",
    "has_hooks",
    "has_state_hooks",
    "known_class",
    "what_would_be_lost",
]

# Hooks see a layer's input and output, which keep their meaning; those of a state dict see its weight, which
# does not.
_CALL_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_OF_PARAMETERS = {"weight", "parameters", "named_parameters", "state_dict", "_parameters"}
# What a subclass may define and still be the same kind of layer.
_HARMLESS = {
    "__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__static_attributes__", "__firstlineno__", "__parameters__", "__type_params__",
    "__orig_bases__", "__abstractmethods__", "_abc_impl", "__dict__", "__weakref__", "__constants__", "__repr__",
    "extra_repr",
}  # fmt: skip


def known_class(module: nn.Module, known: Container[type[nn.Module]]) -> type[nn.Module] | None:
    """The class among ``known`` that a module is of, or that its class was derived from."""
    return next((cls for cls in type(module).__mro__ if cls in known), None)


def changes_of_class(module: nn.Module, known: type[nn.Module]) -> str | None:
    """What a module's class adds to the ``known`` class that it derives from, in words; None if that is nothing, or
    only a constructor or a printed form."""
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
        return None  # it becomes the known class
    for cls in nn.utils.parametrize.type_before_parametrizations(module).__mro__:
        if cls not in known.__mro__ and (names := sorted(vars(cls).keys() - _HARMLESS)):
            return f"{cls.__name__} has a {'forward' if 'forward' in names else names[0]} of its own"
    return None


def what_would_be_lost(module: nn.Module, known: type[nn.Module]) -> str | None:
    """What a layer has that no successor could have, in words; None if nothing.

    Args:
        known: the class that it is of, or that its class was derived from.
    """
    fresh = _fresh(known)  # type: ignore[arg-type]
    if nn.utils.parametrize.is_parametrized(module):
        return "is parametrized"
    if "weight" in fresh._parameters and "weight" not in module._parameters:
        return "does not hold its weight as a parameter (weight_norm, spectral_norm, pruning?)"
    if any(isinstance(p, UninitializedParameter) for p in module._parameters.values()):
        return "has not been given its shape yet (run the network once)"
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and type(tensor) not in (nn.Parameter, nn.Buffer, Tensor):
            return f"has a {name} that is no plain tensor, but a {type(tensor).__name__}"
    for name in added_attributes(module, known):
        if hasattr(type(module), name):
            return f"has had its {name} replaced"
    if (
        module._parameters.keys() - fresh._parameters.keys() - fresh._buffers.keys()
        or module._buffers.keys() - fresh._buffers.keys() - fresh._parameters.keys()
        or any(child is not None for child in module._modules.values())
    ):
        return f"has parameters, buffers or modules that {known.__name__} has not"
    if has_state_hooks(module):
        return "has hooks on its state dict"
    return None


def gradient_hooks(module: nn.Module) -> str | None:
    """Name of a parameter with hooks on its gradient, None if there is none."""
    for name, parameter in module._parameters.items():
        if parameter is not None and any(_hooks_of(parameter)):
            return name
    return None


def _hooks_of(tensor: Tensor) -> tuple[dict[int, Any], dict[int, Any]]:
    return tensor._backward_hooks or {}, getattr(tensor, "_post_accumulate_grad_hooks", None) or {}


def carry(old: nn.Module, new: nn.Module, added: dict[str, Any]) -> str | None:
    """Gives a successor the hooks and the mode of a layer, and attributes that were added to it.

    Returns:
        What the successor cannot carry, in words, None if nothing.
    """
    for name in added:
        if hasattr(new, name):
            return f"has an attribute {name!r}, by which {type(new).__name__} means something else"
    for name in sorted(_read_by_hooks(old)):
        if hasattr(old, name) and name not in added and not hasattr(new, name) and not hasattr(Tensor, name):
            return f"has a hook that reads {name!r}, which {type(new).__name__} has not"
        if name in _OF_PARAMETERS and any(p is not None for p in old._parameters.values()):
            return f"has a hook that reads {name!r}, which {type(new).__name__} means otherwise"
    for name in _CALL_HOOKS:
        new.__dict__[name] = vars(old)[name]  # the very dictionary of hooks, so that handles remove them still
    vars(new).update(added)
    new.train(old.training)
    return None


def added_attributes(module: nn.Module, known: type[nn.Module]) -> dict[str, Any]:
    """What was set on a layer by name beside what its class sets."""
    own = vars(_fresh(known)).keys()  # type: ignore[arg-type]
    return {name: value for name, value in vars(module).items() if name not in own and name != "converted_from"}


@functools.cache
def _fresh(known: type[Any]) -> nn.Module:
    """A small layer of this class, on no device: nothing is drawn for it."""
    return known(1, 1, 1, device="meta") if hasattr(known, "reset_parameters") else known(1)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks see its calls, its state dict or the gradients of its parameters."""
    called = any(vars(module).get(name) for name in _CALL_HOOKS[:-1])
    return called or has_state_hooks(module) or gradient_hooks(module) is not None


def has_state_hooks(module: nn.Module) -> bool:
    """Whether hooks see its state dict."""
    return any(vars(module).get(name) for name in _STATE_HOOKS)


def drop_call_hooks(module: nn.Module) -> None:
    """Takes all hooks on calls from a module, but leaves them to those that share them."""
    for name in _CALL_HOOKS:
        module.__dict__[name] = None if name == "_is_full_backward_hook" else OrderedDict()


def _read_by_hooks(module: nn.Module) -> set[str]:
    """Attributes whose names stand in the code of the hooks on a layer's calls."""
    names: set[str] = set()
    for hooks in _CALL_HOOKS[:-1]:
        for hook in vars(module)[hooks].values():
            while isinstance(hook, functools.partial):
                hook = hook.func
            function = getattr(hook, "__func__", hook)
            if not isinstance(function, types.FunctionType):
                function = type(hook).__call__
            if isinstance(function, types.FunctionType):
                names |= code_names(function.__code__)
    return names


def copied(model: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """A deep copy, and the copy of each module. Parameters keep their attributes and the hooks on their gradients,
    which ``copy.deepcopy`` drops.

    Raises:
        ValueError: the model cannot be copied, as it holds a tensor that was computed.
    """
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if _holds_computed(value, set()):
                raise ValueError(
                    f"{name!r}, {type(module).__name__}, holds a computed tensor, {key!r} (weight_norm, pruning, a "
                    "kept activation?), and PyTorch copies none: remove that first"
                )
    memo: dict[int, Any] = {}
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:  # whatever an object within the network raises
        raise ValueError(f"the network cannot be copied: {error}") from error
    for parameter in model.parameters():
        twin = memo.get(id(parameter))
        if isinstance(twin, nn.Parameter):
            vars(twin).update(copy.deepcopy(vars(parameter), memo))
            before, after = _hooks_of(parameter)
            for hook in before.values():
                twin.register_hook(hook)
            for hook in after.values():
                twin.register_post_accumulate_grad_hook(hook)
    return result, {module: memo.get(id(module), module) for module in model.modules()}


def _holds_computed(value: Any, seen: set[int]) -> bool:
    """Whether it is a tensor with a graph behind it, or a container, within containers, of one."""
    if isinstance(value, Tensor):
        return not value.is_leaf
    if type(value) not in (dict, list, tuple) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_holds_computed(item, seen) for item in (value.values() if type(value) is dict else value))


def as_parameter(value: Tensor, old: Tensor) -> nn.Parameter:
    """``value`` as a parameter with the attributes that were set on ``old``, and frozen if that is."""
    new = nn.Parameter(value.detach(), requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    return new
