"""Replaces modules of a network so that nothing within it still refers to the old ones.

``named_modules`` sees the modules that are registered. A network may also hold them in attributes, containers, bound
methods, weak references or the closures of its hooks, and goes on using what it finds there. So everything that the
network leads to is looked at, as the garbage collector does it, and what cannot be changed is an error.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from sre_triton.conversion.methods import global_names, is_library

__all__ = ["Replacement", "holders", "reached", "replace_modules"]


class Replacement(NamedTuple):
    """A module that takes the place of another."""

    name: str  # fully qualified
    old: nn.Module
    new: nn.Module


def replace_modules(
    model: nn.Module, replacements: Sequence[Replacement], copies: dict[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """Puts modules in the places of others wherever anything that ``model`` leads to holds them.

    Containers, attributes, partial functions, bound methods and weak references are followed. Afterwards no replaced
    module, and no parameter that went with it, can be reached from the network.

    Args:
        model: is changed, unless it is replaced itself.
        replacements: each module once.
        copies: where ``model`` is a copy, the copy of each module of the original. None of the original must be
            reached either: functions, for one, are not copied with what they hold.

    Returns:
        ``model``, or its replacement.

    Raises:
        ValueError: something holds a replaced module or its parameters and cannot be changed, as the closure of a
            hook; or something that was not copied leads to the original. The message names both. Then nothing has
            been changed.
    """
    search = _Search(replacements)
    search.forbid_originals(copies or {}, model)
    search.follow([("", model), *((r.name, r.new) for r in replacements)])
    search.check()
    result: nn.Module = search.apply(model)
    return result


def reached(model: nn.Module) -> list[object]:
    """Everything that a network leads to."""
    search = _Search(())
    search.follow([("", model)])
    return search.seen


def holders(model: nn.Module, wanted: Iterable[object]) -> dict[int, list[object]]:
    """Who holds each of the ``wanted`` objects, by their ``id``, among all that ``model`` leads to. The attributes of
    an object are held by a dictionary, ``vars(object)``."""
    search = _Search(())
    search.wanted = {id(obj) for obj in wanted}
    search.follow([("", model)])
    return {key: [holder for _, holder in search.found.get(key, ())] for key in search.wanted}


class _Search:
    """Looks at all that can be reached, and notes who holds what is to be replaced."""

    def __init__(self, replacements: Sequence[Replacement]) -> None:
        self.new = {id(r.old): r.new for r in replacements}
        self.found: dict[int, list[tuple[object, object]]] = defaultdict(list)  # what was reached, and its holders
        self.wanted: set[int] = set()  # is noted, too
        self._names = {id(r.old): f"{r.name!r}, {type(r.old).__name__}," for r in replacements}
        self._forbidden: dict[int, str] = {}  # what nothing can be put in the place of
        self._memory: dict[int, list[tuple[int, int, str]]] = defaultdict(list)  # of parameters, by their storage
        self._seen: dict[int, object] = {}  # also keeps it alive, and its id its own
        self._parent: dict[int, object] = {}
        self._roots: dict[int, str] = {}
        self._rebuilt: set[int] = set()
        for r in replacements:
            self._forbid_tensors(r.old, r.new, r.name)

    def forbid_originals(self, copies: dict[nn.Module, nn.Module], model: nn.Module) -> None:
        """Notes as forbidden what ``model``, a copy, must not lead to: the original and its parameters."""
        names = {id(module): name for name, module in model.named_modules()}
        for source, copy in copies.items():
            if source is not copy:
                name = " of ".join(filter(None, (names.get(id(copy)), "the network that was copied")))
                self._forbidden[id(source)] = f"{name!r}, {type(source).__name__},"
                self._forbid_tensors(source, copy, name)

    def _forbid_tensors(self, old: nn.Module, new: nn.Module, name: str) -> None:
        kept = {id(t) for t in (*new.parameters(), *new.buffers())}
        for key, parameter in (*old._parameters.items(), *old._buffers.items()):
            if parameter is not None and id(parameter) not in kept:
                label = repr(f"{key} of {name}" if name else key)
                self._forbidden[id(parameter)] = label
                if (span := _memory(parameter)) is not None:
                    self._memory[span[0]].append((*span[1:], label))

    def follow(self, roots: Iterable[tuple[str, object]]) -> None:
        queue: deque[object] = deque()
        for name, root in roots:
            if id(root) not in self._seen and id(root) not in self.new:
                self._seen[id(root)], self._roots[id(root)] = root, name
                queue.append(root)
        while queue:
            holder = queue.popleft()
            for child in _children(holder):
                key = id(child)
                if issubclass(type(child), _NOT_FOLLOWED):
                    continue
                target = key in self.new or key in self._forbidden
                if target or key in self.wanted or _is_rebuilt(child):
                    self.found[key].append((child, holder))
                if key in self._seen:
                    continue
                self._seen[key], self._parent[key] = child, holder
                if not target:
                    queue.append(child)
                    if self._memory and issubclass(type(child), Tensor):
                        self._check_memory(child, holder)  # type: ignore[arg-type]

    @property
    def seen(self) -> list[object]:
        """Everything that was reached."""
        return list(self._seen.values())

    def check(self) -> None:
        """Raises ValueError if a reference to what is replaced would remain."""
        for key, name in self._forbidden.items():
            for _, holder in self.found.get(key, ()):
                raise self._refusal(holder, name)
        pending = [(key, name) for key, name in self._names.items() if key in self.found]
        while pending:
            key, name = pending.pop()
            for child, holder in self.found[key]:
                if all(child is not other for other in _changeable(holder)):
                    raise self._refusal(holder, name)
                if _is_rebuilt(holder) and id(holder) not in self._rebuilt:
                    self._rebuilt.add(id(holder))
                    pending.append((id(holder), name))

    def apply(self, model: nn.Module) -> Any:
        """Changes every holder, and returns what stands for ``model``."""
        memo: dict[int, Any] = dict(self.new)

        def value(obj: Any) -> Any:
            if id(obj) in self._rebuilt and id(obj) not in memo:
                memo[id(obj)] = _rebuilt(obj, value)
            return memo.get(id(obj), obj)

        changed = {
            id(holder): holder
            for key in (*self.new, *self._rebuilt)
            for _, holder in self.found.get(key, ())
            if not _is_rebuilt(holder)
        }
        for holder in changed.values():
            _change(holder, value)
        return value(model)

    def _check_memory(self, tensor: Tensor, holder: object) -> None:
        if (span := _memory(tensor)) is not None:
            for low, high, name in self._memory.get(span[0], ()):
                if span[1] < high and low < span[2]:
                    raise self._refusal(holder, f"a view of {name}")

    def _refusal(self, holder: object, what: str) -> ValueError:
        chain = [holder]
        while id(chain[-1]) in self._parent:
            chain.append(self._parent[id(chain[-1])])
        path = _path(self._roots.get(id(chain[-1]), ""), chain[::-1])
        return ValueError(
            f"{path or 'the network'} holds {what} and cannot be made to hold what takes its place: remove that "
            "reference, make it after the change, or exclude the module with filter_fn"
        )


# How references are seen ------------------------------------------------------------------------------

_NOT_FOLLOWED = (type, types.ModuleType, types.CodeType, types.FrameType, types.TracebackType, str, bytes, int, float)
_FRAMES = {types.GeneratorType: "gi_frame", types.CoroutineType: "cr_frame", types.AsyncGeneratorType: "ag_frame"}
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_CLASS_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property, functools.cached_property)


def _children(obj: Any) -> Iterator[object]:
    """What an object leads to in one step; functions only to what they hold themselves and to modules, tensors and
    containers among the global names that they use."""
    kind = type(obj)
    if issubclass(kind, types.FunctionType):
        yield from _held_by_function(obj)
    elif issubclass(kind, weakref.ReferenceType):
        yield weakref.ref.__call__(obj)
        yield obj.__callback__
    elif kind in weakref.ProxyTypes:
        yield _behind_proxy(obj)
        return
    elif issubclass(kind, np.ndarray):
        yield from obj.flat if obj.dtype.hasobject else ()
    elif kind in _FRAMES and (frame := getattr(obj, _FRAMES[kind])) is not None:
        yield from frame.f_locals.values()  # before Python 3.11 its referent is the frame
    attributes = _attributes(obj)  # first, since an instance gives its values to the dictionary
    if attributes is not None:
        yield attributes
    if kind is dict:
        yield from obj  # by itself: values that are kept in an instance are none of its dictionary's referents
        yield from obj.values()
    elif not issubclass(kind, types.FunctionType):
        yield from _beside(attributes, gc.get_referents(obj))
    if issubclass(kind, nn.Module):
        for cls in kind.__mro__:
            if not is_library(cls.__module__):
                for name, value in vars(cls).items():
                    if name != "__init__" and issubclass(
                        type(value), (*_CLASS_FUNCTIONS, *_CONTAINERS, nn.Module, Tensor)
                    ):
                        yield value


def _attributes(obj: Any) -> dict[str, Any] | None:
    try:
        attributes = object.__getattribute__(obj, "__dict__")
    except Exception:  # whatever a class of someone else's raises
        return None
    return attributes if type(attributes) is dict else None


def _beside(attributes: dict[str, Any] | None, referents: list[Any]) -> Iterator[object]:
    """The referents without the values of attributes: since Python 3.13 an instance keeps them itself, and its
    dictionary, through which they are replaced, is none of its referents."""
    if attributes is None or any(one is attributes for one in referents):
        yield from referents
        return
    values = Counter(map(id, attributes.values()))
    for one in referents:
        if values[id(one)]:
            values[id(one)] -= 1
        else:
            yield one


def _held_by_function(function: types.FunctionType) -> Iterator[object]:
    yield from (value for _, value in _variables(function))
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _variables(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """The names and values of what a function takes from around it."""
    if not is_library(function.__module__ or ""):
        for name in global_names(function.__code__):
            value = function.__globals__.get(name)
            if issubclass(type(value), (*_CONTAINERS, nn.Module, Tensor)):
                yield name, value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it has no value yet
            continue


def _behind_proxy(proxy: Any) -> object:
    try:
        return proxy.__init__.__self__
    except ReferenceError:  # it is gone
        return None


def _memory(tensor: Tensor) -> tuple[int, int, int] | None:
    """The storage of a tensor, and the first and last byte of it that it may use; None if it has no memory."""
    try:
        storage = tensor.untyped_storage().data_ptr()
        if not storage or not tensor.numel():
            return None
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    except Exception:  # sparse tensors, those of no data, those of other subclasses
        return None
    low, size = int(tensor.storage_offset()), tensor.element_size()
    return storage, low * size, (low + int(reach)) * size


# How they are changed ---------------------------------------------------------------------------------


def _is_rebuilt(obj: object) -> bool:
    """Whether it cannot be changed, but made anew with other things in it."""
    kind = type(obj)
    return issubclass(kind, (tuple, frozenset, types.MethodType)) or kind is weakref.ref or kind in weakref.ProxyTypes


def _changeable(obj: Any) -> Iterator[object]:
    """What an object holds in places where something else can be put."""
    kind = type(obj)
    if issubclass(kind, dict):
        yield from dict.keys(obj)
        yield from dict.values(obj)
    elif issubclass(kind, (list, tuple, set, frozenset, deque)):
        yield from kind.__iter__(obj)
    elif issubclass(kind, functools.partial):
        yield from (obj.func, obj.args)
    elif issubclass(kind, types.MethodType):
        name, owner = obj.__func__.__name__, obj.__self__
        # Bound to a successor, other methods of the class might do something else.
        if (name == "forward" or name in vars(nn.Module)) and getattr(type(owner), name, None) is obj.__func__:
            yield owner
    elif kind is weakref.ref:
        yield obj()
    elif kind in weakref.ProxyTypes:
        yield _behind_proxy(obj)
        return
    elif issubclass(kind, np.ndarray):
        yield from obj.flat
    if not issubclass(kind, types.FunctionType):  # the attributes of which are held by their dictionary alone
        yield from (_attributes(obj) or {}).values()
    yield from (slot.__get__(obj) for slot in _slots(obj))


def _slots(obj: Any) -> Iterator[Any]:
    """Descriptors of the attributes that ``__slots__`` gives it and that have a value."""
    for cls in type(obj).__mro__:
        if "__slots__" in vars(cls):
            for member in vars(cls).values():
                if type(member) is types.MemberDescriptorType and hasattr(obj, member.__name__):
                    yield member


def _change(obj: Any, value: Callable[[Any], Any]) -> None:
    """Puts ``value(x)`` in the place of everything that an object holds; it stays the same object."""
    kind = type(obj)
    if issubclass(kind, dict):
        base: Any = OrderedDict if issubclass(kind, OrderedDict) else dict
        items = list(dict.items(obj))
        if any(value(key) is not key for key, _ in items):
            base.clear(obj)
            for key, item in items:
                base.__setitem__(obj, value(key), value(item))
        for key, item in items:
            if value(item) is not item and value(key) is key:
                base.__setitem__(obj, key, value(item))
    elif issubclass(kind, (list, deque)):
        base = list if issubclass(kind, list) else deque
        for i, item in enumerate(list(obj)):
            if value(item) is not item:
                base.__setitem__(obj, i, value(item))
    elif issubclass(kind, set):
        for item in list(obj):
            if value(item) is not item:
                set.discard(obj, item)
                set.add(obj, value(item))
    elif issubclass(kind, functools.partial):
        obj.__setstate__((value(obj.func), value(obj.args), obj.keywords, vars(obj)))
    elif issubclass(kind, np.ndarray):
        for i, item in enumerate(obj.flat):
            obj.flat[i] = value(item)
    for slot in _slots(obj):
        slot.__set__(obj, value(slot.__get__(obj)))


def _rebuilt(obj: Any, value: Callable[[Any], Any]) -> Any:
    kind = type(obj)
    if issubclass(kind, tuple):
        new: Any = tuple.__new__(kind, [value(item) for item in tuple.__iter__(obj)])
    elif issubclass(kind, frozenset):
        new = kind([value(item) for item in frozenset.__iter__(obj)])
    elif issubclass(kind, types.MethodType):
        return getattr(value(obj.__self__), obj.__func__.__name__)
    elif kind is weakref.ref:
        return weakref.ref(value(obj()), obj.__callback__)
    else:
        return weakref.proxy(value(_behind_proxy(obj)))
    if attributes := _attributes(obj):
        vars(new).update({name: value(item) for name, item in attributes.items()})
    return new


# How they are told ------------------------------------------------------------------------------------

_REGISTRIES = ("_modules", "_parameters", "_buffers")


def _path(root: str, chain: list[Any]) -> str:
    """The way from a root to an object, as one would write it."""
    text, owner, registry = root, None, False
    for parent, child in pairwise(chain):
        if child is _attributes(parent):
            owner = child
        elif parent is owner or registry:
            name = next((str(key) for key, value in parent.items() if value is child), "?")
            registry = parent is owner and name in _REGISTRIES
            text += "" if registry else f".{name}"
        elif issubclass(type(parent), dict):
            key = next((key for key, value in parent.items() if value is child), None)
            text += f"[{key!r}]" if issubclass(type(key), (str, int)) else "[...]"
        elif issubclass(type(parent), (list, tuple, deque)):
            text += f"[{next(i for i, value in enumerate(parent) if value is child)}]"
        elif issubclass(type(parent), types.FunctionType):
            names = [name for name, value in _variables(parent) if value is child]
            text += f" ({parent.__qualname__}){'.' + names[0] if names else ''}"
        elif issubclass(type(parent), types.MethodType):
            text += ".__self__" if child is parent.__self__ else ""
    last = chain[-1]
    if issubclass(type(last), types.FunctionType):
        text = f"{text}, the function {last.__qualname__}," if text else f"the function {last.__qualname__}"
    return text.lstrip(". ")
