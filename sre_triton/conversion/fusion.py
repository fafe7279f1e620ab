"""Folding batch normalisation into the convolution before it, for inference, where that is proven to change nothing.

It is if the output of the convolution goes into the normalisation and nowhere else. A ``torch.fx`` graph of the
forward pass shows it, of the whole network or, where that cannot be traced, of the largest parts that can. What a graph
does not show must not be there: other ways to either layer, hooks, methods that compute beside ``forward``.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sre_triton.conversion import behaviour
from sre_triton.conversion.methods import reads
from sre_triton.conversion.references import holders, reached, replace_modules
from sre_triton.layers import RingConvNd

__all__ = ["fold_batch_norm", "fuse_batch_norms", "fused"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norm(conv: nn.Module, norm: _BatchNorm) -> None:
    """Changes ``conv`` so that it gives what ``norm`` made of its output.

    Weights of a ring are scaled by output channel, so they stay weights of a ring: the layer keeps its
    geometry, and its cost. The arithmetic is in float64. Weight and bias become new parameters: one that ``conv``
    shared with another layer is left to that.

    Args:
        conv: a convolution of PyTorch or of this package, transposed or not, in groups or not.
        norm: with running statistics.

    Raises:
        TypeError: ``conv`` is no convolution.
        ValueError: ``norm`` has no running statistics.
    """
    if not isinstance(conv, (RingConvNd, nn.modules.conv._ConvNd)):
        raise TypeError(f"conv must be a convolution, got {type(conv).__name__}")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm has no running statistics to fold (track_running_stats=False)")
    # Transposed, a weight has the output channels of one group only in its second dimension.
    groups = conv.groups if conv.transposed else 1
    weight, bias = conv.weight.detach().double(), None if conv.bias is None else conv.bias.detach().double()
    channels = [bias, norm.running_mean, norm.running_var, norm.weight, norm.bias]
    parts = [[None] * groups if t is None else t.detach().double().chunk(groups) for t in channels]
    fused = [
        fuse_conv_bn_weights(w, b, mean, var, norm.eps, gamma, beta, transpose=bool(conv.transposed))
        for w, b, mean, var, gamma, beta in zip(weight.chunk(groups), *parts, strict=True)
    ]
    dtype = conv.weight.dtype
    new_weight, new_bias = (torch.cat([pair[i] for pair in fused]).detach().to(dtype) for i in (0, 1))
    old_bias = conv.weight if conv.bias is None else conv.bias
    conv.weight = behaviour.as_parameter(new_weight, conv.weight)
    conv.bias = nn.Parameter(new_bias, requires_grad=old_bias.requires_grad)


def fused(network: nn.Module) -> Any:
    """A copy of ``network`` whose batch normalisations are folded into the convolutions before them, where that is
    proven to change nothing.

    Raises:
        RuntimeError: the network is in training mode, where the statistics are those of the batch.
        ValueError: it cannot be copied.
    """
    if network.training:
        raise RuntimeError("fuse() folds the running statistics, which training mode does not use; call eval() first")
    network, copies = behaviour.copied(network)
    replace_modules(network, (), copies)  # nothing of the copy may lead back
    fuse_batch_norms(network)
    return network


def fuse_batch_norms(model: nn.Module) -> None:
    """Folds batch normalisations into the convolutions before them, in place, wherever that is proven to change
    nothing. What is not proven stays as it is."""
    pairs = [pair for pair in _adjacent(model) if _may_fuse(model, pair)]
    for pair in _without_other_holders(model, pairs):
        conv, norm = model.get_submodule(pair.conv), model.get_submodule(pair.norm)
        assert isinstance(norm, _BatchNorm)
        fold_batch_norm(conv, norm)
        model.set_submodule(pair.norm, nn.Identity().eval())


class _Pair(NamedTuple):
    """A convolution whose output goes into one normalisation alone.

    Holds the names of both, and the code that ran while this was seen, by the names of the modules it belongs to."""

    conv: str
    norm: str
    scope: str
    trusted: frozenset[types.CodeType]


# Which output goes where ------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Follows the forward pass into everything that holds modules, but for what has hooks: they would run."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.run: set[types.CodeType] = set()  # what led to the nodes of the graph

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            self.run.add(frame.f_code)
            frame = frame.f_back
        return super().create_proxy(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None or behaviour.has_hooks(m) or isinstance(m, (RingConvNd, *_CONVOLUTIONS))


def _adjacent(model: nn.Module) -> Iterator[_Pair]:
    """Pairs in the largest parts of a network that can be traced."""
    twin, _ = behaviour.copied(model)  # tracing runs the code of others, which may change what it belongs to
    pending = [""]
    while pending:
        scope = pending.pop()
        root = twin.get_submodule(scope)
        if next(root.children(), None) is None:
            continue
        try:
            graph, trusted = _trace(root)
        except Exception:  # whatever a forward that depends on data or sizes raises
            if type(root) is nn.Sequential:
                names = list(root._modules)
                yield from (_pair(scope, a, b, frozenset()) for a, b in itertools.pairwise(names))
            pending += [_join(scope, name) for name, _ in root.named_children()]
            continue
        kept = {obj.node.name for obj in reached(root) if type(obj) is fx.Proxy}
        yield from (_pair(scope, a, b, trusted) for a, b in _pairs_of(graph, kept))
        pending += [_join(scope, str(node.target)) for node in graph.nodes if node.op == "call_module"]


def _trace(root: nn.Module) -> tuple[fx.Graph, frozenset[types.CodeType]]:
    """The graph of a module's forward, and the code that ran for it."""
    if "forward" in vars(root):
        raise TypeError("torch.fx traces the forward of a class")
    tracer = _Tracer()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return tracer.trace(root), frozenset(tracer.run)


def _pairs_of(graph: fx.Graph, kept: set[str]) -> Iterator[tuple[str, str]]:
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        if isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
            conv, norm = str(source.target), str(node.target)
            if calls[conv] == calls[norm] == 1 and not {conv, norm} & read and source.name not in kept:
                yield conv, norm


def _pair(scope: str, conv: str, norm: str, trusted: frozenset[types.CodeType]) -> _Pair:
    return _Pair(_join(scope, conv), _join(scope, norm), scope, trusted)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


# What a graph does not show ---------------------------------------------------------------------------


def _may_fuse(model: nn.Module, pair: _Pair) -> bool:
    conv, norm = model.get_submodule(pair.conv), model.get_submodule(pair.norm)
    kind, norm_kind = type(conv), type(norm)
    if kind not in _CONVOLUTIONS and not (isinstance(conv, RingConvNd) and is_of_this_package(kind)):
        return False
    if norm_kind not in _BATCH_NORMS or norm.training or norm.running_mean is None:
        return False
    for module in (conv, norm):
        if behaviour.has_hooks(module) or behaviour.what_would_be_lost(module, type(module)) is not None:
            return False
    # Modules that hold the two may also reach them in ways that the trace did not take.
    for target in (pair.conv, pair.norm):
        names = target.split(".")
        for i in range(len(names)):
            above = _join(*names[:i])
            seen = above == pair.scope or above.startswith(pair.scope + ".") or not pair.scope
            if reads(model.get_submodule(above), names[i:], set(pair.trusted) if seen else set()):
                return False
    return True


def is_of_this_package(kind: type[nn.Module]) -> bool:
    """Whether a class is one of this package's own, and not derived from one elsewhere."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _without_other_holders(model: nn.Module, pairs: list[_Pair]) -> list[_Pair]:
    """Those pairs to which no other way leads than by the names of modules."""
    ways = {name: _and_above(name) for pair in pairs for name in (pair.conv, pair.norm)}
    modules = {name: model.get_submodule(name) for way in ways.values() for name in way if name}
    found = holders(model, modules.values()) if modules else {}
    registered = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))

    def alone(name: str) -> bool:
        module, parent = modules[name], model.get_submodule(name.rpartition(".")[0])
        graph = vars(module._graph) if isinstance(module, fx.GraphModule) and hasattr(module, "_graph") else None
        return registered[id(module)] == 1 and all(
            holder is parent._modules or holder is graph or isinstance(holder, types.MethodType)
            for holder in found[id(module)]
        )

    return [pair for pair in pairs if all(alone(n) for name in pair[:2] for n in ways[name] if n)]


def _and_above(name: str) -> list[str]:
    names = name.split(".")
    return [_join(*names[:i]) for i in range(len(names), -1, -1)]
