"""Ring convolution layers refuse what the ``torch.nn`` layer of the same name refuses, when it does, and say why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from tests import reference
from tests.test_layers import BACKENDS, NAMES, dimensions, ours, theirs


def outcome(layer: type[nn.Module], arguments: dict[str, Any], x: Any) -> tuple[str, type[Exception] | None, str]:
    """When a layer refuses, what it raises and what it says."""
    try:
        module = layer(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments})
    except Exception as error:
        return "constructor", type(error), str(error)
    try:
        module(x)
    except Exception as error:
        return "call", type(error), str(error)
    return "never", None, ""


FINE = (2, 4, 9, 9)

# What is wrong: arguments of the layer, the input, and what the message must name (as in re.search).
MISTAKES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "too many channels": ({}, torch.ones(2, 5, 9, 9), r"\[2, 5, 9, 9\].* to have 4 channels, but got 5"),
    "too few channels": ({}, torch.ones(2, 3, 9, 9), r"to have 4 channels, but got 3"),
    "unbatched with wrong channels": ({}, torch.ones(3, 9, 9), r"to have 4 channels, but got 3"),
    "other dtype": ({}, torch.ones(FINE, dtype=torch.float64), "float64.*float32"),
    "other layer dtype": ({"dtype": torch.float16}, torch.ones(FINE), "float32.*float16"),
    "integer input": ({}, torch.ones(FINE, dtype=torch.int64), "int64.*float32"),
    "bool input": ({}, torch.ones(FINE, dtype=torch.bool), "bool.*float32"),
    "complex input": ({}, torch.ones(FINE, dtype=torch.complex64), "complex64.*float32"),
    "scalar": ({}, torch.ones(()), r"Expected .* input .*got input of size: \[\]"),
    "too few dimensions": ({}, torch.ones(9, 9), r"Expected .*3D.*4D.* input .*got input of size: \[9, 9\]"),
    "too many dimensions": ({}, torch.ones(1, 2, 4, 9, 9), r"Expected .*3D.*4D.* input .*\[1, 2, 4, 9, 9\]"),
    "kernel larger than input": ({}, torch.ones(2, 4, 2, 2), r"\(2.{1,3}2\).*size: \(3.{1,3}3\).* can't be greater"),
    "kernel larger than padded input": (
        {"kernel_size": 7, "padding": 1}, torch.ones(2, 4, 4, 4), r"\(6.{1,3}6\).*Kernel size: \(7.{1,3}7\)",
    ),
    "dilated kernel larger than input": ({"dilation": 5}, torch.ones(FINE), r"\(9.{1,3}9\).*\(11.{1,3}11\)"),
    "zero stride": ({"stride": 0}, torch.ones(FINE), r"stride.*\(0, 0\)"),
    "negative stride": ({"stride": (1, -1)}, torch.ones(FINE), r"stride.*\(1, -1\)"),
    "negative padding": ({"padding": -1}, torch.ones(FINE), r"padding.*\(-1, -1\)"),
    "zero dilation": ({"dilation": 0}, torch.ones(FINE), r"dilation.*\(0, 0\)"),
    "stride of three": ({"stride": (1, 1, 1)}, torch.ones(FINE), r"stride.* 2 values.*\(1, 1, 1\)"),
    "padding of three": ({"padding": (1, 1, 1)}, torch.ones(FINE), r"padding.* 2 values.*\(1, 1, 1\)"),
    "dilation of three": ({"dilation": (1, 1, 1)}, torch.ones(FINE), r"dilation.* 2 values.*\(1, 1, 1\)"),
    "stride as float": ({"stride": 1.5}, torch.ones(FINE), r"stride.*1\.5"),
    "padding as float": ({"padding": 1.5}, torch.ones(FINE), r"padding.*1\.5"),
    "dilation as float": ({"dilation": (1, 2.0)}, torch.ones(FINE), r"dilation.*2\.0"),
    "stride as string": ({"stride": "12"}, torch.ones(FINE), "stride.*'1', '2'"),
    "no stride": ({"stride": None}, torch.ones(FINE), "stride.*None"),
    "input as list": ({}, [[1.0]], "input must be a Tensor, got list"),
    "no input": ({}, None, "input must be a Tensor, got NoneType"),
    "zero groups": ({"groups": 0}, torch.ones(FINE), "groups.*positive.*0"),
    "negative groups": ({"groups": -2}, torch.ones(FINE), "groups.*positive.*-2"),
    "groups that do not divide the input": ({"groups": 3}, torch.ones(FINE), "in_channels.*divisible.*4.*3"),
    "groups that do not divide the output": ({"groups": 4}, torch.ones(FINE), "out_channels.*divisible.*6.*4"),
    "unknown keyword": ({"strides": 2}, torch.ones(FINE), "strides"),
    "unknown padding mode": ({"padding_mode": "mirror"}, torch.ones(FINE), "padding_mode.*'zeros'.*'mirror'"),
    "integer parameters": ({"dtype": torch.int32}, torch.ones(FINE), "floating"),
    "channels as float": ({"in_channels": 4.0}, torch.ones(FINE), "float"),
    "channels as string": ({"in_channels": "4"}, torch.ones(FINE), "str"),
    "kernel size as float": ({"kernel_size": 3.0}, torch.ones(FINE), r"float|kernel_size.*3\.0"),
}  # fmt: skip
ONLY_CONV: dict[str, tuple[dict[str, Any], Tensor, str]] = {
    "unknown padding": ({"padding": "full"}, torch.ones(FINE), "padding.*'full'.*'same'.*'valid'"),
    "same padding of a strided layer": ({"padding": "same", "stride": 2}, torch.ones(FINE), r"'same'.*\(2, 2\)"),
    "reflection longer than the input": ({"padding": 9, "padding_mode": "reflect"}, torch.ones(FINE), "[Pp]adding"),
    "padding wraps more than once": ({"padding": 10, "padding_mode": "circular"}, torch.ones(FINE), "[Pp]adding"),
}
ONLY_TRANSPOSED: dict[str, tuple[dict[str, Any], Tensor, str]] = {
    "output padding without stride": ({"output_padding": 1}, torch.ones(FINE), r"output.padding.*\(1, 1\).*stride"),
    "negative output padding": ({"output_padding": -1}, torch.ones(FINE), r"output.padding.*\(-1, -1\)"),
    "nothing left": ({"padding": 9}, torch.ones(2, 4, 3, 3), r"output size.*\(-13, -13\).*too small"),
    "padding mode": ({"padding_mode": "reflect"}, torch.ones(FINE), "padding_mode|padding mode"),
}
NOT_TRANSPOSED = {"kernel larger than input", "kernel larger than padded input", "dilated kernel larger than input"}
MISTAKEN = [
    *(("Conv2d", case, mistake) for case, mistake in {**MISTAKES, **ONLY_CONV}.items()),
    *(
        ("ConvTranspose2d", case, mistake)
        for case, mistake in {**MISTAKES, **ONLY_TRANSPOSED}.items()
        # The transposed layer has no such limit, and of booleans torch has nothing to say (NotImplementedError).
        if case not in NOT_TRANSPOSED | {"bool input", "padding of three"}
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "case", "mistake"), MISTAKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_mistakes_are_refused_as_by_torch(name: str, case: str, mistake: tuple[Any, ...], backend: str) -> None:
    arguments, x, message = mistake
    when, kind, _ = outcome(theirs(name), arguments, x)
    assert kind in (ValueError, TypeError, RuntimeError)
    with sre_triton.backend(backend):
        told = outcome(ours(name), arguments, x)
    assert told[:2] == (when, kind), told
    with pytest.raises(kind, match=f"(?s){message}"):
        raise kind(told[2])


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_mistakes_in_other_dimensions_are_refused_as_by_torch(kind: str, ndim: int) -> None:
    name = f"{kind}{ndim}d"
    good = torch.ones(2, 4, *[9] * ndim)
    cases: list[tuple[dict[str, Any], Tensor]] = [
        ({}, good[:, :3]),
        ({}, good.double()),
        ({}, good.long()),
        ({}, good[..., 0, 0]),
        ({}, good[None, None]),
        ({"stride": 0}, good),
        ({"padding": -1}, good),
        ({"dilation": 0}, good),
        ({"groups": 3}, good),
        ({"strides": 2}, good),
    ]
    for arguments, x in cases:
        when, expected, _ = outcome(theirs(name), arguments, x)
        assert expected is not None
        assert outcome(ours(name), arguments, x)[:2] == (when, expected), (arguments, x.shape, x.dtype)


@pytest.mark.parametrize("kernel_size", [(3,), (3, 3, 3), [3]])
def test_kernel_size_of_another_dimension_is_refused_by_the_constructor(kernel_size: Any) -> None:
    with pytest.raises(ValueError, match="kernel_size must be an int or a tuple of 2 ints for SREConv2d"):
        sre_triton.SREConv2d(3, 4, kernel_size)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [{"num_rings": 0}, {"num_rings": 9}, {"circular": False, "antialias": True}, {"kernel_size": 4}],
    ids=str,
)
def test_impossible_rings_are_refused_by_the_constructor(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_rings|circular|kernel_size"):
        ours(name)(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3, **options})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_under_a_kept_tap_reach_the_output(name: str, bad: float, backend: str) -> None:
    layer = ours(name)(2, 3, 5, padding=2, dtype=torch.float64)
    nn.init.constant_(layer.weight, 0.5)
    ndim = dimensions(name)
    x = torch.ones(1, 2, *[11] * ndim, dtype=torch.float64)
    x[(0, 1, *[5] * ndim)] = bad
    with sre_triton.backend(backend):
        y = layer(x)
    kept = reference.ring_masks((5,) * ndim, 3, True).any(axis=0).reshape((5,) * ndim)
    footprint = y[(0, slice(None), *[slice(3, 8)] * ndim)]
    assert not footprint[:, torch.from_numpy(kept)].isfinite().any()
    outside = torch.ones_like(y, dtype=torch.bool)
    outside[(0, slice(None), *[slice(3, 8)] * ndim)] = False
    assert y[outside].isfinite().all()
