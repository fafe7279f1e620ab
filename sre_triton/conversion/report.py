"""Tells what a conversion did to a network, what it left and why, and which symmetry the network then has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sre_triton.conversion.behaviour import copied
from sre_triton.conversion.breaks import ModuleError, breaking, generators, module_errors
from sre_triton.conversion.references import replace_modules
from sre_triton.conversion.replacements import (
    ConvertedFrom,
    is_convolution,
    is_pooling,
    leaves_pixels_over,
    what_would_be_lost,
    why_left,
)
from sre_triton.equivariance import equivariance_error
from sre_triton.invariants.layers import InvariantsNd
from sre_triton.layers import RingConvNd
from sre_triton.observing import check_network, unchanged

__all__ = ["LayerReport", "ModelReport", "SymmetryReport", "report"]


@dataclass(frozen=True)
class LayerReport:
    """One convolution or pooling layer.

    Attributes:
        name: fully qualified.
        action: "swapped", "left", "ring" for a ring layer that was one before, or "invariants" for a layer of these.
        before: the layer as it was.
        after: the layer as it is, the same if it was left.
        note: what was changed, or why it was left.
    """

    name: str
    action: str
    before: str
    after: str
    note: str


@dataclass(frozen=True)
class SymmetryReport:
    """What was measured on a sample.

    Attributes:
        group: the group of turns and flips.
        error: relative error of the whole network in float64, see :func:`sre_triton.equivariance_error`.
        tolerance: error up to which it counts as symmetric.
        breaks: where the symmetry is lost: name of a module whose inputs still had it and whose output has not,
            with the reason as far as it can be told, in the order of execution. Empty if the network is
            symmetric.
        errors: relative error of the output of each call of each module, by name (with the number of the
            call if there are several) in the order in which the calls end. None for outputs upon which the
            symmetry has no known action.
    """

    group: str
    error: float
    tolerance: float
    breaks: tuple[tuple[str, str], ...]
    errors: dict[str, float | None] = field(repr=False)

    @property
    def symmetric(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def first_break(self) -> str | None:
        """Name of the first module that breaks the symmetry ("" is the network itself), None if none does."""
        return self.breaks[0][0] if self.breaks else None

    def __str__(self) -> str:
        verdict = "symmetric" if self.symmetric else "not symmetric"
        lines = [f"{verdict} under {self.group!r}: relative error {self.error:.2g} (tolerance {self.tolerance:.0e})"]
        for i, (name, why) in enumerate(self.breaks):
            lines.append(f"  {'first broken' if i == 0 else 'then'} by {name or 'the network itself'}: {why}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ModelReport:
    """What :func:`report` found; printed, it is a table.

    Attributes:
        layers: every convolution and pooling layer, in the order of ``named_modules``.
        parameters_before: number of the whole network's parameters, were its kernels dense.
        parameters_after: number of them as it is, with its ring kernels.
        symmetry: None if no sample was given.
    """

    layers: tuple[LayerReport, ...]
    parameters_before: int
    parameters_after: int
    symmetry: SymmetryReport | None = None

    @property
    def swapped(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.action == "swapped")

    @property
    def left(self) -> tuple[LayerReport, ...]:
        """The layers that were not, with the reasons in ``note``."""
        return tuple(layer for layer in self.layers if layer.action == "left")

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = []
        for layer in self.layers:
            what = f"{layer.before} -> {layer.after}" if layer.action == "swapped" else layer.before
            note = f": {layer.note}" if layer.note else ""
            lines.append(f"{layer.action:7}  {layer.name:{width}}  {what}{note}")
        share = self.parameters_after / self.parameters_before if self.parameters_before else 1.0
        lines.append(
            f"{len(self.swapped)} layers swapped, {len(self.left)} left; "
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,} ({share:.0%})"
        )
        if self.symmetry is not None:
            lines.append(str(self.symmetry))
        return "\n".join(lines)


def report(
    model: nn.Module, sample: Tensor | None = None, *, group: str = "all", tolerance: float = 1e-5
) -> ModelReport:
    """Lists the convolutions and poolings of a network, converted or not, and measures its symmetry.

    Args:
        model: any module. One that :func:`sre_triton.convert` returned tells what its layers were before.
        sample: (N, C, *space), an image such as the network is used on. Its size matters: windows with a stride
            are centred at some sizes and not at others. Given one, a copy of the network runs on it in float64
            and eval mode, turned and flipped, and each module's output is compared. None: nothing is measured.
        group: "rotations" (quarter turns), "flips" or "all"; see :func:`sre_triton.grid_symmetries`.
        tolerance: relative error up to which an output counts as symmetric. Rounding is far below the default,
            a pixel lost at the edge of an image far above it.

    Returns:
        A :class:`ModelReport`: one :class:`LayerReport` per convolution and pooling layer, the parameters without and
        with rings, and with a sample a :class:`SymmetryReport` of the whole network and of every module. Printed, it
        is a table. The network is left as it was.

    Raises:
        ValueError: ``sample`` or ``group`` is none of these; or the network cannot be copied.
        TypeError: ``model`` is no module, or ``sample`` no tensor.
        RuntimeError: the network cannot run on the sample, or not in float64, as one that casts to float32.

    Examples:
        >>> network = sre_triton.convert(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 2)))
        >>> found = sre_triton.report(network, torch.randn(1, 3, 16, 16))
        >>> [(layer.name, layer.action) for layer in found.layers]
        [('0', 'swapped'), ('1', 'left')]
        >>> found.symmetry.symmetric, found.symmetry.first_break
        (False, '1')
    """
    check_network("model", model)
    if sample is not None and not isinstance(sample, Tensor):
        raise TypeError(f"sample must be a tensor, got {type(sample).__name__}")
    if sample is not None and not 3 <= sample.dim() <= 5:
        raise ValueError(f"sample must be (N, C, *space) in 1 to 3 dimensions, got shape {tuple(sample.shape)}")
    layers, saved = _layers(model)
    after = sum(p.numel() for p in model.parameters())
    symmetry = None if sample is None else _symmetry(model, sample, group, tolerance)
    return ModelReport(tuple(layers), after + saved, after, symmetry)


def _layers(model: nn.Module) -> tuple[list[LayerReport], int]:
    """One line per layer, and how many parameters the ring kernels save."""
    layers: list[LayerReport] = []
    saved: dict[int, int] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        origin = getattr(module, "converted_from", None)
        if id(module) in inside:
            continue
        if isinstance(origin, ConvertedFrom):
            parts = list(module.children()) if isinstance(module, nn.Sequential) else [module]
            inside |= {id(part) for part in parts}
            conv = parts[-1]
            if origin.weights:
                assert isinstance(conv.weight, Tensor)
                saved[id(conv.weight)] = origin.weights - conv.weight.numel()
            after = " + ".join(str(part) for part in parts)
            layers.append(LayerReport(name, "swapped", origin.layer, after, origin.note))
        elif isinstance(module, RingConvNd):
            layers.append(LayerReport(name, "ring", str(module), str(module), ""))
        elif isinstance(module, InvariantsNd):
            layers.append(LayerReport(name, "invariants", str(module), str(module), ""))
        elif is_convolution(module) or is_pooling(module):
            refused = what_would_be_lost(module)
            reason = why_left(module) or (
                f"convert refuses it: it {refused}"
                if refused
                else "could be converted: filter_fn or strides='keep' left it, or nobody tried"
            )
            layers.append(LayerReport(name, "left", str(module), str(module), reason))
    return layers, sum(saved.values())


def _symmetry(model: nn.Module, sample: Tensor, group: str, tolerance: float) -> SymmetryReport:
    exact, copies = copied(model)
    replace_modules(exact, (), copies)  # what leads back to the model would be measured there
    # A normalisation over few pixels turns rounding in float32 into errors like those of a lost pixel.
    exact = exact.double().eval()
    with unchanged(sample), torch.no_grad():
        try:
            error = equivariance_error(exact, sample.double(), group)
        except RuntimeError as failure:
            raise RuntimeError(
                f"the network cannot run on the sample in float64, in which it is measured: {failure} (if it casts to "
                "another dtype, sre_triton.equivariance_error measures the whole of it in that)"
            ) from failure
        calls = module_errors(exact, sample.double(), group)
    breaks: dict[str, str] = {}
    if not error <= tolerance:
        for call in breaking(calls, tolerance):
            breaks.setdefault(call.name, _why_broken(call, sample.dim() - 2, group))
        if not breaks:
            breaks[""] = "no one module: errors of many add up, or the output is neither a map nor a vector"
    return SymmetryReport(group, error, tolerance, tuple(breaks.items()), _by_name(calls))


def _by_name(calls: list[ModuleError]) -> dict[str, float | None]:
    errors: dict[str, float | None] = {}
    for call in calls:
        key, n = call.name, 1
        while key in errors:
            n += 1
            key = f"{call.name} (call {n})"
        errors[key] = call.output
    return errors


def _why_broken(call: ModuleError, ndim: int, group: str) -> str:
    """The reason why a module breaks a symmetry, by what it is and what it was called with."""
    module: Any = call.module
    kind = type(module).__name__
    position = [name for name, _ in module.named_parameters(recurse=False) if "pos" in name]
    position += [name for name, _ in module.named_buffers(recurse=False) if "pos" in name]
    if position:
        return f"{kind} with a positional embedding ({', '.join(position)})"
    size = call.input_shape[-ndim:] if call.input_shape else ()
    if is_convolution(module) or isinstance(module, RingConvNd):
        if any(k % 2 == 0 for k in module.kernel_size):
            return f"{kind} with an even kernel {module.kernel_size}"
        if not isinstance(module, RingConvNd) and not _is_symmetric(module.weight, group):
            return f"{kind} whose kernel {module.kernel_size} is not symmetric"
        if leaves_pixels_over(module, size):
            return f"stride {module.stride} leaves pixels over at the far edge of {size}"
    if is_pooling(module) and leaves_pixels_over(module, size):
        return f"off-centre windows: {module} leaves pixels over at the far edge of {size}"
    if next(module.children(), None) is not None:
        return f"{kind}.forward, between its layers (padding or cropping on one side, a positional embedding, ...)"
    return f"{kind} is not symmetric"


def _is_symmetric(kernel: Tensor, group: str) -> bool:
    scale = 1e-5 * kernel.abs().max().item()
    moves = generators(kernel.dim() - 2, group)
    return len(set(kernel.shape[2:])) == 1 and all(torch.allclose(g(kernel), kernel, rtol=0, atol=scale) for g in moves)
