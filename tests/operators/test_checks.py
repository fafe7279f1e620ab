"""What operators refuse: anybody can call ``torch.ops.sre_triton``, with anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sre_triton
from sre_triton import functional as S
from sre_triton.operators import operators as _ops
from tests.oracle import BACKENDS

Change = Callable[[Any], Any]

X, Y, W = torch.randn(2, 4, 6, 5), torch.randn(2, 6, 3, 3), torch.randn(6, 2, 2)
PLAIN = {
    "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "groups": 2, "kernel_size": 3, "circular": True,
    "antialias": False, "backend": "auto",
}  # fmt: skip
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "conv": (_ops.ring_conv.overload, {"input": X, "weight": W, "bias": torch.randn(6), **PLAIN}),
    "act": (
        _ops.ring_conv_act.overload,
        {"input": X, "weight": W, "bias": torch.randn(6), "residual": Y, "activation": "relu", "negative_slope": 0.1}
        | PLAIN,
    ),
    "transpose": (
        _ops.ring_conv_transpose.overload,
        {"input": Y, "weight": W, "bias": torch.randn(4), "output_padding": [1, 0], **PLAIN},
    ),
    "weight_grad": (_ops.ring_conv_weight_grad.overload, {"input": X, "grad_output": Y, "num_rings": 2, **PLAIN}),
    "backward": (_ops.ring_conv_backward.overload, {"input": X, "grad_output": Y, "weight": W, **PLAIN}),
    "expand": (
        _ops.expand_kernel.overload,
        {"weight": W, "kernel_size": [3, 3], "circular": True, "antialias": False, "dtype": torch.float64},
    ),
    "collapse": (
        _ops.collapse_kernel.overload,
        {"dense": torch.randn(6, 2, 3, 3), "num_rings": 2, "circular": True, "antialias": False, "dtype": None},
    ),
}

# The argument that is changed, how, and what the error says of it.
TENSORS: tuple[tuple[str, Change, str], ...] = (
    ("input", lambda t: t[0], "input"),
    ("input", lambda t: t[:, :3], "input"),
    ("input", lambda t: t.double(), "Input type"),
    ("input", lambda t: t[:, :, :0], "size"),
    ("weight", lambda t: t[0], "weight|rings"),
    ("weight", lambda t: t[:, :1], "weight|bias"),
    ("weight", lambda t: t[:4], "weight|bias|channels"),
    ("weight", lambda t: t[:5], "weight"),
    ("weight", lambda t: t.repeat(1, 1, 3), "num_rings"),
    ("weight", lambda t: t.half(), "weight"),
    ("bias", lambda t: t[:-1], "bias"),
    ("bias", lambda t: t[None], "bias"),
    ("bias", lambda t: t.double(), "bias"),
    ("residual", lambda t: t[:1], "residual"),
    ("residual", lambda t: t[..., :2], "residual"),
    ("residual", lambda t: t.double(), "residual"),
    ("grad_output", lambda t: t[:1], "grad_output"),
    ("grad_output", lambda t: t[..., :2], "grad_output"),
    ("grad_output", lambda t: t[:, :5], "grad_output"),
    ("grad_output", lambda t: t[0], "grad_output"),
    ("grad_output", lambda t: t.double(), "grad_output"),
    ("dense", lambda t: t[0, 0], "dense"),
    ("dense", lambda t: t[..., :2], "kernel_size"),
    ("dense", lambda t: t.long(), "dense"),
)
VALUES: tuple[tuple[str, Any, str], ...] = (
    ("stride", [0, 1], "stride"),
    ("stride", [1], "stride|padding|input"),
    ("stride", [], "stride"),
    ("stride", [1] * 4, "stride|padding"),
    ("padding", [-1, 0], "padding"),
    ("padding", [1], "padding"),
    ("dilation", [0, 1], "dilation"),
    ("dilation", [9, 9], "Kernel size|size|input|grad_output|dilation"),
    ("groups", 0, "groups"),
    ("groups", -1, "groups"),
    ("groups", 3, "groups|bias"),
    ("kernel_size", 2, "kernel_size"),
    ("kernel_size", 0, "kernel_size"),
    ("kernel_size", -3, "kernel_size"),
    ("kernel_size", [3, 5], "kernel_size"),
    ("kernel_size", [], "kernel_size"),
    ("backend", "fast", "backend"),
    ("num_rings", 0, "num_rings"),
    ("num_rings", 9, "num_rings"),
    ("activation", "gelu", "activation"),
    ("output_padding", [2, 0], "output.padding"),
    ("output_padding", [0, -1], "output_padding"),
    ("output_padding", [0], "output_padding"),
    ("dtype", torch.int64, "dtype"),
)
MISTAKES = [
    pytest.param(call, name, change, match, id=f"{call}-{name}{i}")
    for call, (_, arguments) in CALLS.items()
    for i, (name, change, match) in enumerate(
        [*TENSORS, *((name, lambda _, value=value: value, match) for name, value, match in VALUES)]
    )
    if name in arguments
    and not (call == "expand" and name == "weight" and match.startswith("weight|") and "rings" not in match)
    and not (call == "expand" and name == "weight" and match == "weight")
    and not (call == "transpose" and match.startswith("Kernel size"))  # an output of any size is large enough
    # A list where the schema has an int, and an int where it has a list, is refused by the dispatcher.
    and (name != "kernel_size" or isinstance(arguments[name], list) == isinstance(change(torch.empty(0)), list))
]


@pytest.mark.parametrize("where", ["cpu", "fake", "derived"])
@pytest.mark.parametrize(("call", "name", "change", "match"), MISTAKES)
def test_operators_refuse_by_name(call: str, name: str, change: Change, match: str, where: str) -> None:
    operator, arguments = CALLS[call]
    operator(*arguments.values())
    changed = list({**arguments, name: change(arguments[name])}.values())
    for backend in ("auto", *BACKENDS) if where == "cpu" and "backend" in arguments and name != "backend" else ("",):
        if backend:
            changed[-1] = backend
        if where == "derived":
            changed = [
                a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in changed
            ]
        if where == "fake":
            mode = FakeTensorMode()
            changed = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in changed]
        with pytest.raises((RuntimeError, ValueError, TypeError), match=match):
            operator(*changed)


# Arguments in whatever form -----------------------------------------------------------------------------

SAME = (
    (1, 1), [1, 1], 1, np.array([1, 1]), np.int64(1), (np.int32(1), 1), torch.tensor([1, 1]), torch.tensor(1),
)  # fmt: skip
NOT_INTEGERS = ((1.0, 1.0), 1.0, True, (True, 1), [1.0, 1], np.array([1.0, 1.0]), torch.tensor([1.0, 1.0]),
                torch.tensor(True), "1", None, np.array([True, True]))  # fmt: skip


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("first", [True, False])
def test_validity_does_not_depend_on_what_was_called_before(name: str, first: bool) -> None:
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 2)

    def call(value: Any) -> Tensor:
        return S.sre_conv2d(x, weight, **{"kernel_size": 3, name: value})

    expected = call((1, 1)) if first else None
    for value in NOT_INTEGERS:
        with pytest.raises((TypeError, RuntimeError), match=name):
            call(value)
    for value in SAME:
        assert torch.equal(call(value), call((1, 1)) if expected is None else expected)


def test_a_tensor_is_read_at_every_call() -> None:
    x, weight, stride = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 2), torch.tensor([1, 1])
    assert S.sre_conv2d(x, weight, stride=stride, kernel_size=3).shape == (1, 3, 7, 7)
    stride.fill_(2)
    assert S.sre_conv2d(x, weight, stride=stride, kernel_size=3).shape == (1, 3, 4, 4)
    assert S.sre_conv2d(x, weight, stride=(stride[0], stride[1]), kernel_size=3).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("name", ["groups", "circular", "antialias", "kernel_size"])
def test_other_arguments_are_what_they_say_whatever_was_called_before(name: str) -> None:
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 2)
    S.sre_conv2d(x, weight, kernel_size=3, groups=1, circular=True, antialias=False)
    wrong = {"groups": (1.0, True), "circular": (1, 1.0), "antialias": (0, 0.0), "kernel_size": (3.0, (3.0, 3.0), True)}
    for value in wrong[name]:
        with pytest.raises(TypeError, match=name):
            S.sre_conv2d(x, weight, **{"kernel_size": 3, name: value})


@pytest.mark.parametrize("kind", [sre_triton.SREConv2d, sre_triton.SREConvTranspose2d, sre_triton.GMRConv2d])
def test_layers_take_integers_in_any_form(kind: type[Any]) -> None:
    forms = {"stride": np.array([1, 2]), "padding": torch.tensor([1, 0]), "dilation": np.int64(1)}
    layer, plain = kind(2, 3, 3, **forms), kind(2, 3, 3, stride=(1, 2), padding=(1, 0))
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(1, 2, 7, 8)
    assert torch.equal(layer(x), plain(x))
    # nn.ConvNd makes tuples of what it is constructed with. Attributes may be set to anything later.
    layer.stride, layer.padding = torch.tensor([2, 1]), np.array([0, 1])
    plain.stride, plain.padding = (2, 1), (0, 1)
    assert torch.equal(layer(x), plain(x))
    layer.stride.fill_(1)
    plain.stride = (1, 1)
    assert torch.equal(layer(x), plain(x))
    layer.dilation = (1.0, 1.0)
    with pytest.raises(TypeError, match="dilation must be"):
        layer(x)
