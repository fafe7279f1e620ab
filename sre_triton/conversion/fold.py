"""Turns a network of this package into one of ordinary PyTorch modules, which runs wherever those run."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from sre_triton.conversion.convert import replace_modules
from sre_triton.functional import expand_kernel
from sre_triton.layers import RingConvNd

__all__ = ["fold"]

_PACKAGE = __name__.partition(".")[0]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS: dict[type[nn.Module], bool] = {  # whether they are transposed
    cls: cls.__name__.startswith("ConvTranspose")
    for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
}


def fold(model: nn.Module, *, fuse_batchnorm: bool = False) -> nn.Module:
    """The same function without this package: a copy of ``model`` that computes with ordinary convolutions.

    Every ring convolution becomes the ``nn.ConvNd`` (or ``nn.ConvTransposeNd``) of its expanded kernel, with
    the same name in the state dict. Every other module of this package becomes a ``torch.fx`` graph of
    ``torch`` functions; a centred pooling so goes on choosing its window by the size of each input. The result
    pickles, and loads where this package is not installed. It is for inference: training it would unlearn
    the rings.

    ``torch.compile`` takes the result with dynamic shapes. ``torch.export`` with a dynamic size specialises on
    the parity of what a centred pooling sees, so export one program for the sizes that are used, or
    pad to a multiple of the strides.

    Args:
        model: a ring layer, a converted network, one of this package's own, or anything that holds such.
        fuse_batchnorm: also multiply each batch normalisation with running statistics into the convolution
            right before it, where the forward pass can be traced and neither has hooks.

    Returns:
        A new module in the mode of ``model``, sharing nothing with it.

    Raises:
        ValueError: ``fuse_batchnorm`` for a model in training mode, in which normalisation depends on the
            batch; or a layer carries a parametrization, or hooks on its state dict, that would be lost.
        TypeError: a module of this package that cannot be traced, with the reason as its cause.
    """
    if fuse_batchnorm and any(m.training for m in model.modules()):
        raise ValueError("fuse_batchnorm=True needs the model in eval mode: call model.eval() first")
    model = copy.deepcopy(model)
    rings = {id(m): _plain_convolution(m, name) for name, m in model.named_modules() if isinstance(m, RingConvNd)}
    model = replace_modules(model, rings)
    model = _trace_own_modules(model)
    for module in model.modules():
        vars(module).pop("converted_from", None)
    if fuse_batchnorm:
        names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
        _fuse_batchnorm(model, {id(m) for m in model.modules() if names[id(m)] > 1 or _has_hooks(m)})
    return model


def _plain_convolution(ring: Any, name: str) -> nn.Module:
    if nn.utils.parametrize.is_parametrized(ring):
        raise ValueError(
            f"{name!r}, {type(ring).__name__}, is parametrized: remove its parametrizations before folding"
        )
    cls = getattr(nn, f"Conv{'Transpose' if ring.transposed else ''}{ring.ndim}d")
    options: dict[str, Any] = {"output_padding": ring.output_padding} if ring.transposed else {}
    plain = cls(
        ring.in_channels, ring.out_channels, ring.kernel_size, ring.stride, ring.padding, dilation=ring.dilation,
        groups=ring.groups, bias=ring.bias is not None, padding_mode=ring.padding_mode,
        device="meta", dtype=ring.weight.dtype, **options,
    )  # fmt: skip
    with torch.no_grad():
        dense = expand_kernel(ring.ring_weight(), ring.kernel_size, ring.circular, ring.antialias)
    plain.weight = nn.Parameter(dense.contiguous(), requires_grad=ring.weight.requires_grad)
    plain.bias = ring.bias
    _carry_hooks(ring, plain, name)
    return plain


class _Inliner(fx.Tracer):
    """Follows the forward pass into modules of this package alone."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_own(m)


def _is_own(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == _PACKAGE


def _trace_own_modules(model: nn.Module) -> nn.Module:
    """Replaces the modules of this package by graphs. One that holds containers which hold more of them comes
    first, so that these are found where the graph has put them."""
    while outermost := dict(_own_modules(model)):
        model = replace_modules(model, {id(m): _graph(m, name) for m, name in outermost.items()})
    return model


def _own_modules(module: nn.Module, name: str = "") -> Iterator[tuple[nn.Module, str]]:
    """The outermost modules of this package, and their names."""
    if _is_own(module):
        yield module, name
    else:
        for child_name, child in module.named_children():
            yield from _own_modules(child, f"{name}.{child_name}".lstrip("."))


def _graph(module: nn.Module, name: str) -> fx.GraphModule:
    try:
        graph = _Inliner().trace(module)
    except Exception as error:
        label = f"{name!r}, {type(module).__name__}," if name else type(module).__name__
        raise TypeError(f"{label} cannot be folded: torch.fx cannot trace its forward") from error
    for node in graph.nodes:
        node.type = None  # an annotation in quotes cannot be written into the graph's code
    graph._tracer_cls = None  # it would be pickled by its name
    folded = fx.GraphModule(module, graph, type(module).__name__)
    folded.train(module.training)
    _carry_hooks(module, folded, name)
    return folded


def _carry_hooks(old: nn.Module, new: nn.Module, name: str) -> None:
    for key, value in vars(old).items():
        if key.endswith("_hooks") and "state_dict" in key and value:
            raise ValueError(f"{name!r}, {type(old).__name__}, has hooks on its state dict, which folding changes")
        if "_hooks" in key and "state_dict" not in key:
            new.__dict__[key] = value
    new.__dict__["_is_full_backward_hook"] = old._is_full_backward_hook
    new.train(old.training)


def _has_hooks(module: nn.Module) -> bool:
    return any(value for key, value in vars(module).items() if "_hooks" in key)


class _LeafTracer(fx.Tracer):
    """Follows the forward pass into everything that holds modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def _fuse_batchnorm(module: nn.Module, untouchable: set[int]) -> None:
    """Fuses batch normalisations into the convolutions before them, in place, in the largest parts that trace."""
    if next(module.children(), None) is None:
        return
    try:
        graph = _LeafTracer().trace(module)
    except Exception:  # whatever a forward that depends on data or sizes raises
        for child in module.children():
            _fuse_batchnorm(child, untouchable)
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) > 1 or calls[source.target] + calls[node.target] > 2:
            continue
        targets = str(source.target), str(node.target)
        conv, norm = (module.get_submodule(target) for target in targets)
        if type(conv) not in _CONVOLUTIONS or type(norm) not in _BATCH_NORMS or norm.running_mean is None:
            continue
        if {id(conv), id(norm)} & untouchable:
            continue
        # The lines above say what both are, in terms that a type checker does not follow.
        fused: nn.Module = fuse_conv_bn_eval(conv, norm, transpose=_CONVOLUTIONS[type(conv)])  # type: ignore[type-var, arg-type]
        module.set_submodule(targets[0], fused)
        module.set_submodule(targets[1], nn.Identity().eval())
