"""Turns a network of this package into one of ordinary PyTorch modules, which runs wherever those run."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from sre_triton.conversion.any_size import for_any_size
from sre_triton.conversion.behaviour import (
    added_attributes,
    as_parameter,
    carry,
    changes_of_class,
    copied,
    has_hooks,
    has_state_hooks,
    what_would_be_lost,
)
from sre_triton.conversion.fusion import fuse_batch_norms, is_of_this_package
from sre_triton.conversion.methods import all_names, code_names, methods, reader_of_weight
from sre_triton.conversion.references import Replacement, replace_modules
from sre_triton.functional import expand_kernel
from sre_triton.layers import RingConvNd
from sre_triton.observing import check_network

__all__ = ["fold"]


def fold(model: nn.Module, *, fuse_batchnorm: bool = False, any_size: bool = False) -> nn.Module:
    """The same function without this package: a copy of ``model`` that computes with ordinary convolutions.

    Every ring convolution becomes the ``nn.ConvNd`` (or ``nn.ConvTransposeNd``) of its expanded kernel, with
    the same name in the state dict. Every other module of this package becomes a ``torch.fx`` graph of
    ``torch`` functions; a centred pooling so goes on choosing its window by the size of each input. The result
    pickles, and loads where this package is not installed. It is for inference: training it would unlearn
    the rings.

    ``torch.compile`` takes the result with dynamic shapes. Programs of ``torch.export`` and ONNX hold a pooling's
    window as a constant, that of the example's size: at a size of another parity the first raises and *ONNX computes
    something else*. For a program with dynamic sizes fold with ``any_size=True``, as ``sre-triton export`` does.

    Args:
        model: a ring layer, a converted network, one of this package's own, or anything that holds such.
        fuse_batchnorm: also multiply each batch normalisation with running statistics into the convolution
            right before it, where it is proven that nothing else uses the output of that: by a graph of the
            forward pass, of the network or of a part, and by what its other methods speak of. Layers with hooks,
            parametrizations or attributes that replace methods stay as they are.
        any_size: let centred poolings gather their windows by index, slower, so that one exported program is right
            for every image size.

    Returns:
        A new module in the mode of ``model``, sharing nothing with it. Hooks on calls and attributes that were set
        go with each layer; hooks on the gradients of ring weights, and the ring weights, do not.

    Raises:
        ValueError: ``fuse_batchnorm`` for a model in training mode, in which normalisation depends on the
            batch; or a layer carries what would be lost: a parametrization, weight normalisation or pruning,
            hooks on its state dict, methods of a subclass or an instance, parameters of its own; or something
            would go on holding a replaced layer, as the closure of a hook; or the network cannot be copied.
        TypeError: ``model`` is no module, or a module of this package cannot be traced, with the reason as its cause.

    Examples:
        >>> network = nn.Sequential(sre_triton.SREConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> sre_triton.fold(network, fuse_batchnorm=True)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
    """
    check_network("model", model)
    if fuse_batchnorm and any(m.training for m in model.modules()):
        raise ValueError("fuse_batchnorm=True needs the model in eval mode: call model.eval() first")
    names = all_names(model)
    for name, module in model.named_modules():
        if isinstance(module, RingConvNd):
            _check_ring(module, name, reader_of_weight(model, names[module]))
    _check_methods(model)
    model, copies = copied(for_any_size(model) if any_size else model)
    weights: dict[tuple[Any, ...], nn.Parameter] = {}
    rings = [
        Replacement(name, module, _plain_convolution(module, name, weights))
        for name, module in model.named_modules()
        if isinstance(module, RingConvNd)
    ]
    model = replace_modules(model, rings, copies)
    model = _trace_own_modules(model, copies)
    for module in model.modules():
        vars(module).pop("converted_from", None)
    if fuse_batchnorm:
        fuse_batch_norms(model)
    return model


def _ring_class(ring: nn.Module) -> type[RingConvNd]:
    return next(cls for cls in type(ring).__mro__ if issubclass(cls, RingConvNd) and is_of_this_package(cls))


def _check_ring(ring: nn.Module, name: str, reader: str | None) -> None:
    known = _ring_class(ring)
    lost = what_would_be_lost(ring, known) or changes_of_class(ring, known)
    if lost is not None:
        raise _refusal(ring, name, lost)
    if reader is not None:
        raise _refusal(ring, name, f"has ring weights that {reader} reads")


def _check_methods(model: nn.Module) -> None:
    """Raises ValueError if the network calls a method of a module of this package other than its forward, which is all
    that its graph will have."""
    spoken: dict[str, str] = {}
    for module in model.modules():
        for function in methods(module).values():
            spoken |= dict.fromkeys(code_names(function.__code__), function.__qualname__)
    own = {name for module in model.modules() for name in methods(module)}
    for name, module in model.named_modules():
        if _is_own(module) and not isinstance(module, RingConvNd):
            for key in spoken.keys() - own:
                if isinstance(getattr(type(module), key, None), types.FunctionType) and not hasattr(
                    fx.GraphModule, key
                ):
                    raise _refusal(module, name, f"has a method {key}, of which {spoken[key]} speaks")


def _refusal(module: nn.Module, name: str, reason: str) -> ValueError:
    return ValueError(f"{name!r}, {type(module).__name__}, {reason}, which folding would lose: remove that first")


def _plain_convolution(ring: Any, name: str, weights: dict[tuple[Any, ...], nn.Parameter]) -> nn.Module:
    """The ordinary convolution of an expanded kernel. ``weights`` holds those that were made, so that layers which
    share their ring weights share these."""
    cls = getattr(nn, f"Conv{'Transpose' if ring.transposed else ''}{ring.ndim}d")
    options: dict[str, Any] = {"output_padding": ring.output_padding} if ring.transposed else {}
    plain = cls(
        ring.in_channels, ring.out_channels, ring.kernel_size, ring.stride, ring.padding, dilation=ring.dilation,
        groups=ring.groups, bias=ring.bias is not None, padding_mode=ring.padding_mode,
        device="meta", dtype=ring.weight.dtype, **options,
    )  # fmt: skip
    key = (ring.geometry, *(id(t) for k, t in (*ring._parameters.items(), *ring._buffers.items()) if k != "bias"))
    if key not in weights:
        with torch.no_grad():
            dense = expand_kernel(ring.ring_weight(), ring.kernel_size, ring.circular, ring.antialias)
        weights[key] = as_parameter(dense.contiguous(), ring.weight)
    plain.weight, plain.bias = weights[key], ring.bias
    if (lost := carry(ring, plain, added_attributes(ring, _ring_class(ring)))) is not None:
        raise _refusal(ring, name, lost)
    return plain


class _Inliner(fx.Tracer):
    """Follows the forward pass into modules of this package alone."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_own(m) or has_hooks(m)  # hooks would run now, and not with the graph


def _is_own(module: nn.Module) -> bool:
    return is_of_this_package(type(module))


def _trace_own_modules(model: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replaces the modules of this package by graphs. One that holds containers which hold more of them comes
    first, so that these are found where the graph has put them."""
    while outermost := list(_own_modules(model)):
        model = replace_modules(model, [Replacement(name, m, _graph(m, name)) for m, name in outermost], copies)
    return model


def _own_modules(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The outermost modules of this package, each once, and their names."""
    seen: set[int] = set()
    pending = [(module, "")]
    while pending:
        outer, name = pending.pop()
        if id(outer) not in seen:
            seen.add(id(outer))
            if _is_own(outer):
                yield outer, name
            else:
                pending += [(child, f"{name}.{n}".lstrip(".")) for n, child in outer.named_children()]


def _graph(module: nn.Module, name: str) -> fx.GraphModule:
    """The graph of a module's forward, which alone it keeps of its methods."""
    for key, value in vars(module).items():
        if callable(value) and callable(getattr(type(module), key, None)):
            raise _refusal(module, name, f"has had its {key} replaced")
    if has_state_hooks(module):
        raise _refusal(module, name, "has hooks on its state dict")
    try:
        with torch.no_grad():  # for gradient checkpointing to see that there is nothing to do
            graph = _Inliner().trace(module)
    except Exception as error:
        label = f"{name!r}, {type(module).__name__}," if name else type(module).__name__
        raise TypeError(f"{label} cannot be folded: torch.fx cannot trace its forward") from error
    for node in graph.nodes:
        node.type = None  # an annotation in quotes cannot be written into the graph's code
    graph._tracer_cls = None  # it would be pickled by its name
    folded = fx.GraphModule(module, graph, type(module).__name__)
    plain = {key: value for key, value in vars(module).items() if key not in vars(folded) and key != "converted_from"}
    if (lost := carry(module, folded, plain)) is not None:
        raise _refusal(module, name, lost)
    return folded
