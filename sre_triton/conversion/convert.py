"""Makes an existing network rotation-equivariant: ring convolutions and centred poolings take the places of its own.

:mod:`sre_triton.conversion.replacements` decides what becomes of each layer; here is what concerns the network that
holds them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from sre_triton.conversion.behaviour import copied
from sre_triton.conversion.methods import all_names, reader_of_weight
from sre_triton.conversion.references import Replacement, replace_modules
from sre_triton.conversion.replacements import Swapper, is_convolution, is_pooling, refuse_what_would_be_lost, why_left
from sre_triton.observing import check_network

__all__ = ["convert"]


def convert(
    model: nn.Module,
    *,
    kernel_size: int | None = None,
    num_rings: int | None = None,
    weights: str = "project",
    strides: str = "pool",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    inplace: bool = False,
    circular: bool = True,
    antialias: bool = False,
) -> nn.Module:
    """Replaces the convolutions of a network by ring convolutions, and what breaks symmetry when down-sampling.

    Kernels of one tap are symmetric already and stay as they are. Kernels of even size, kernels that are
    not the same size in every dimension, complex ones, strided transposed convolutions and subclasses with methods of
    their own are left alone; :func:`sre_triton.report` lists them and says why, and measures what symmetry the
    network then has.

    A layer is replaced wherever the network holds it: as a child under any number of names, in attributes, containers
    of any kind, partial functions, bound methods and weak references.

    Args:
        model: any module, also a convolution itself.
        kernel_size: odd number of pixels of every ring kernel of more than one tap. None keeps each layer's own. A
            smaller kernel is embedded, then projected. That keeps the function of a ring kernel where its rings are
            rings of the larger one: always in 1-D; in 2-D from 3, from 5 to at most 15, and from 7 to 9; in 3-D
            from 3 to 5 and from 7 to 9. A larger kernel loses its outer taps.
        num_rings: rings of every kernel; None for ``kernel_size // 2 + 1``.
        weights: "project" takes the ring kernel nearest in least squares to each layer's kernel: the same
            function if it was constant on rings already. "reset" draws new ones. Biases go with them.
        strides: "pool" has strided convolutions follow a centred average pooling at stride 1, as
            ``nn.Sequential(pool, convolution)`` (with a padding between them where the convolution reflects or
            repeats its input: small maps need more than one reflection), and replaces strided max- and
            average-poolings by centred ones (see :mod:`sre_triton.pooling`). The sizes of all outputs remain those
            of the network as it was, at all sizes. "keep" leaves strides and poolings as they are: the same
            function, but symmetric only where each stride happens to divide.
        filter_fn: called with every convolution and max- or average-pooling, and its fully qualified name;
            it is left alone where this returns False. None replaces whatever can be replaced.
        inplace: change ``model`` instead of a copy. Optimisers made before then hold replaced parameters.
            A model that is itself replaced (a bare convolution) is not changed: use what is returned.
        circular: True ends the rings of every kernel at radius ``kernel_size // 2 + 0.5`` pixels; False at the corners.
        antialias: weigh each tap by the share of its pixel that a ring covers, see :class:`sre_triton.SREConv2d`.

    Returns:
        The network, in the mode, dtype and devices that it had. Modules and parameters that were shared
        still are. Hooks on the calls of modules and attributes of modules and parameters are kept.

    Raises:
        ValueError: an argument has no such form; or a layer carries what its successor could not, e.g. a
            parametrization, an instance's own ``forward``, or hooks on its state dict or on the gradient of its
            weight; or a parameter is shared between layers that become different; or something would go on holding
            a replaced layer or its parameters, as the closure of a hook or an optimiser does; or the network
            cannot be copied. The message names the layer. Then nothing has been changed.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        >>> sre_triton.convert(network)
        Sequential(
          (0): SREConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (1): ReLU()
          (2): CenteredMaxPool2d(stride=2, reach=1)
        )
    """
    _check_arguments(kernel_size, weights, strides)
    check_network("model", model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("model is wrapped in DistributedDataParallel, which holds on to its parameters: convert first")
    # Reasons to refuse are looked for in the network itself: its copy has lost some of them already.
    names, chosen = all_names(model), []
    for name, module in _post_order(model):
        if not (is_convolution(module) or is_pooling(module)) or (filter_fn and not filter_fn(module, name)):
            continue
        if why_left(module, strides=strides, kernel_size=kernel_size) is None:
            refuse_what_would_be_lost(module, name, reader_of_weight(model, names[module]))
            chosen.append((name, module))
    model, copies = (model, {}) if inplace else copied(model)
    swapper = Swapper(kernel_size, num_rings, weights, strides, circular, antialias)
    # Replacements are all made before the first is put in, so that an error leaves the network as it was.
    replacements = []
    for name, module in chosen:
        old = copies.get(module, module)
        replacements.append(Replacement(name, old, swapper(old, name)))
    _check_shared_parameters(model, {id(r.old): r.new for r in replacements})
    return replace_modules(model, replacements, copies)


def _post_order(module: nn.Module, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, children before parents, with its fully qualified name."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    for child_name, child in module.named_children():
        yield from _post_order(child, f"{name}.{child_name}" if name else child_name, seen)
    yield name, module


def _check_arguments(kernel_size: int | None, weights: str, strides: str) -> None:
    if kernel_size is not None:
        if not isinstance(kernel_size, int) or isinstance(kernel_size, bool):
            raise TypeError(f"kernel_size must be an int or None, got {kernel_size!r}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    for name, value, choices in (("weights", weights, ("project", "reset")), ("strides", strides, ("pool", "keep"))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _check_shared_parameters(model: nn.Module, replacements: dict[int, nn.Module]) -> None:
    """Raises ValueError if two holders of one parameter would hold different ones."""
    holders: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders[id(parameter)].append((f"{name}.{key}", _parameter_after(module, key, replacements)))
    for places in holders.values():
        if len({id(after) for _, after in places}) > 1:
            names = ", ".join(repr(name) for name, _ in places)
            raise ValueError(f"{names} are one parameter, but would become different ones; exclude them with filter_fn")


def _parameter_after(module: nn.Module, key: str, replacements: dict[int, nn.Module]) -> Any:
    new = replacements.get(id(module), module)
    return getattr(new[-1] if new is not module and isinstance(new, nn.Sequential) else new, key)
