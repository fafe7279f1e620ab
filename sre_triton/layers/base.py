"""What every ring convolution layer shares: arguments, parameters, their state, and how tracers see them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from sre_triton.functional.calls import traced_by_jit
from sre_triton.geometry.conv import ConvArgs
from sre_triton.geometry.rings import RingGeometry, default_num_rings, ring_geometry
from sre_triton.operators.arguments import Size, conv_args
from sre_triton.planning.request import current_backend
from sre_triton.private_api import ntuple

__all__ = ["INDEX_BUFFERS", "RingConvNd"]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

# Buffers of the reference packages' checkpoints, constants all. They are checked and dropped.
INDEX_BUFFERS = ("weight_index_mat", "default_weight_index_mat")


class RingConvNd(nn.Module):
    """What every ring convolution layer shares. Subclasses say how many dimensions, and which way."""

    __constants__ = [
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "output_padding",
        "in_channels",
        "out_channels",
        "kernel_size",
        "num_rings",
        "circular",
        "antialias",
    ]
    ndim: ClassVar[int]
    transposed: ClassVar[bool]

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    padding_mode: str
    num_rings: int
    circular: bool
    antialias: bool
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size,
        padding: Size | str,
        dilation: Size,
        output_padding: Size,
        groups: int,
        bias: bool,
        padding_mode: str,
        num_rings: int | None,
        circular: bool,
        antialias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if isinstance(dtype, torch.dtype) and dtype.is_complex:
            raise TypeError(f"dtype must be a floating dtype or None, got {dtype}: rings are real")
        as_tuple = ntuple(self.ndim)
        strides: tuple[int, ...] = as_tuple(stride)
        size: tuple[int, ...] = as_tuple(kernel_size)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not hasattr(type(channels), "__index__"):
                raise TypeError(f"{name} must be an int, got {channels!r} of type {type(channels).__name__}")
        if groups <= 0:
            raise ValueError(f"groups must be a positive integer, got {groups}")
        if in_channels % groups != 0:
            raise ValueError(f"in_channels must be divisible by groups, got in_channels={in_channels}, groups={groups}")
        if out_channels % groups != 0:
            raise ValueError(
                f"out_channels must be divisible by groups, got out_channels={out_channels}, groups={groups}"
            )
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"Invalid padding string {padding!r}, should be one of 'same', 'valid'")
            if padding == "same" and any(s != 1 for s in strides):
                raise ValueError(f"padding='same' is not supported for strided convolutions, got stride={strides}")
        modes = ("zeros",) if self.transposed else _PADDING_MODES
        if padding_mode not in modes:
            raise ValueError(
                f"padding_mode must be one of {modes} for {type(self).__name__}, but got padding_mode={padding_mode!r}"
            )
        if isinstance(size, tuple) and len(size) != self.ndim:
            raise ValueError(
                f"kernel_size must be an int or a tuple of {self.ndim} ints for {type(self).__name__}, got {size}"
            )
        geometry = ring_geometry(size, num_rings, circular, antialias)

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = strides
        self.padding = padding if isinstance(padding, str) else as_tuple(padding)
        self.dilation = as_tuple(dilation)
        self.output_padding = as_tuple(output_padding)
        self.groups = groups
        self.padding_mode = padding_mode
        self.num_rings = geometry.num_rings
        self.circular = circular
        self.antialias = antialias

        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty((first, second // groups, geometry.num_rings), **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, **factory))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @property
    def geometry(self) -> RingGeometry:
        """The rings of this layer's kernel."""
        return ring_geometry(self.kernel_size, self.num_rings, self.circular, self.antialias)

    def reset_parameters(self) -> None:
        """Draws weight and bias from the distribution that ``nn.ConvNd`` of this kernel size draws from:
        uniform within ``1 / sqrt(fan_in)`` of zero, with the fan of the *dense* kernel."""
        fan_in = self.weight.shape[1] * math.prod(self.kernel_size)
        bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def ring_weight(self) -> Tensor:
        """The weight of each ring that the convolution uses, in the shape of ``weight``."""
        return self.weight

    def _as_leaf(self, input: Proxy, *args: Any) -> Proxy:
        """The call of this layer in a graph of ``torch.fx``, whose tracers ask to go into modules that are not
        PyTorch's own: one node, as they make it of ``nn.ConvNd``."""
        if self._forward_pre_hooks or self._forward_hooks:
            # They have run on the way here, and would run again with the graph.
            raise RuntimeError(
                f"torch.fx cannot trace {type(self).__name__}({self.extra_repr()}), which has forward hooks: remove "
                "them (torch.nn.utils.prune.remove, remove_weight_norm), or trace with a Tracer whose is_leaf_module "
                "is True for it"
            )
        tracer: Any = input.tracer
        path = tracer.path_of_module(self)
        if not path:
            raise RuntimeError(
                f"torch.fx traces what holds {type(self).__name__} layers, not one alone: put it into nn.Sequential"
            )
        return tracer.create_proxy("call_module", path, (input, *args), {})

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What ``nn.Module`` runs in place of ``forward`` under ``torch.jit.trace``."""
        with traced_by_jit():
            return super()._slow_forward(*args, **kwargs)

    def __prepare_scriptable__(self) -> NoReturn:
        """What ``torch.jit.script`` calls before it reads the source of a module."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}({self.extra_repr()}): use torch.jit.trace or "
            "torch.export.export, or script what sre_triton.fold makes of the network"
        )

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as ``nn.ConvNd`` prints them."""
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        zero, one = (0,) * self.ndim, (1,) * self.ndim
        parts += [f"padding={self.padding}"] if self.padding != zero else []
        parts += [f"dilation={self.dilation}"] if self.dilation != one else []
        parts += [f"output_padding={self.output_padding}"] if self.output_padding != zero else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        default_rings = default_num_rings(self.kernel_size[0], self.circular, self.ndim)
        parts += [f"num_rings={self.num_rings}"] if self.num_rings != default_rings else []
        parts += ["circular=False"] if not self.circular else []
        parts += ["antialias=True"] if self.antialias else []
        return ", ".join(parts)

    def _conv_args(self, padding: Size | str) -> ConvArgs:
        return conv_args(
            self.ndim,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.kernel_size,
            self.circular,
            self.antialias,
            current_backend(),
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        error_msgs: list[str] = args[-1]
        for name in INDEX_BUFFERS:
            if prefix + name in state_dict:
                error = self._index_buffer_error(state_dict.pop(prefix + name))
                if error is not None:
                    error_msgs.append(f'"{prefix}{name}" {error}')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _index_buffer_error(self, buffer: Tensor) -> str | None:
        """Why a reference checkpoint's ring map is not this layer's, or None if it is."""
        expected = torch.from_numpy(self.geometry.weights.copy())
        if buffer.numel() != expected.numel():
            return (
                f"has shape {tuple(buffer.shape)}, but this layer's ring map is (1, 1, {self.num_rings}, "
                f"{expected.shape[1]}): kernel_size, num_rings or circular differ"
            )
        if buffer.is_meta:  # so is what it came with: there is nothing to be checked
            return None
        if torch.equal(buffer.detach().to("cpu", torch.float64).reshape(expected.shape), expected):
            return None
        if self.antialias:
            return "is a map of hard rings, but this layer is anti-aliased: build it with antialias=False"
        return (
            "is not the one-hot map of this layer's rings (it may have been trained, or belong to other ring edges), "
            "so the checkpoint is not a ring convolution of this geometry"
        )
