"""Ring convolution layers stand wherever the ``torch.nn`` layer of the same name stood."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sre_triton
from sre_triton.geometry.rings import ring_geometry
from sre_triton.layers import RingConvNd
from tests import oracle, reference

CONVS = ["Conv1d", "Conv2d", "Conv3d"]
TRANSPOSED = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
NAMES = [*CONVS, *TRANSPOSED]
BACKENDS = ["auto", *oracle.BACKENDS]
RING_OPTIONS = {"num_rings": None, "circular": True, "antialias": False}

# Reach and rounding of a sum of products: units in the last place of its largest term, generously for a
# few hundred terms; every dtype is compared with float64 at this many.
ULPS = 16


def ours(name: str) -> type[RingConvNd]:
    return getattr(sre_triton, f"SRE{name}")


def theirs(name: str) -> type[nn.Module]:
    return getattr(nn, name)


def dimensions(name: str) -> int:
    return int(name[-2])


def dense_twin(layer: RingConvNd, name: str, **arguments: Any) -> nn.Module:
    """The ``torch.nn`` layer with the kernel that ``layer`` shares on rings, expanded by NumPy."""
    twin = theirs(name)(layer.in_channels, layer.out_channels, layer.kernel_size, **arguments)
    table = layer.geometry.weights
    if not layer.antialias:
        table = reference.ring_masks(layer.kernel_size, layer.num_rings, layer.circular)
    kernel = reference.expand(layer.weight.detach().double().numpy(), layer.kernel_size, table)
    with torch.no_grad():
        twin.weight.copy_(torch.from_numpy(kernel))
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


def image(name: str, channels: int, size: int = 9, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, channels, *range(size, size + dimensions(name)), dtype=dtype)


# Arguments --------------------------------------------------------------------------------------------


def parameters(layer: type) -> list[inspect.Parameter]:
    return list(inspect.signature(layer).parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_those_of_torch_and_then_ring_options(name: str) -> None:
    expected = [(p.name, p.kind, p.default) for p in parameters(theirs(name))]
    arguments = [(p.name, p.kind, p.default) for p in parameters(ours(name))]
    assert arguments[: len(expected)] == expected
    options = arguments[len(expected) :]
    assert options == [(key, inspect.Parameter.KEYWORD_ONLY, default) for key, default in RING_OPTIONS.items()]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gmr_arguments_are_those_of_the_ring_layer_and_then_its_own(ndim: int) -> None:
    gmr = [(p.name, p.kind, p.default) for p in parameters(getattr(sre_triton, f"GMRConv{ndim}d"))]
    sre = [(p.name, p.kind, p.default) for p in parameters(ours(f"Conv{ndim}d"))]
    assert gmr[: len(sre)] == sre
    assert [(name, default) for name, _, default in gmr[len(sre) :]] == [
        ("train_gaussian_sigma", True),
        ("gaussian_sigma_scale", 2.355),
    ]


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 3, "dilation": 2, "groups": 2, "bias": False},
    {"kernel_size": 5, "padding": 1},
    {"dtype": torch.float64, "device": "meta"},
]
CONV_ARGUMENTS: list[dict[str, Any]] = [
    *ARGUMENTS,
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": "valid", "padding_mode": "circular"},
    {"padding_mode": "replicate", "padding": 1},
]
TRANSPOSED_ARGUMENTS: list[dict[str, Any]] = [*ARGUMENTS, {"stride": 3, "output_padding": 2}]
CASES = [
    *itertools.product(CONVS, CONV_ARGUMENTS),
    *itertools.product(TRANSPOSED, TRANSPOSED_ARGUMENTS),
]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_attributes_and_repr_are_those_of_torch(name: str, arguments: dict[str, Any]) -> None:
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments}
    layer, twin = ours(name)(**arguments), theirs(name)(**arguments)
    for attribute in theirs(name).__constants__:
        assert getattr(layer, attribute) == getattr(twin, attribute), attribute
    assert set(theirs(name).__constants__) <= set(ours(name).__constants__)
    assert layer.transposed == twin.transposed
    assert repr(layer) == f"SRE{twin!r}"
    assert layer.weight.shape[:2] == twin.weight.shape[:2]
    assert (layer.weight.dtype, layer.weight.device) == (twin.weight.dtype, twin.weight.device)
    assert [key for key, _ in layer.named_parameters()] == [key for key, _ in twin.named_parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_by_position(name: str) -> None:
    positional = (4, 6, 3, 2, 1, 1, 2, False) if "Transpose" in name else (4, 6, 3, 2, 1, 2, 2, False)
    assert repr(ours(name)(*positional)) == f"SRE{theirs(name)(*positional)!r}"


def test_repr_tells_ring_options() -> None:
    layer = sre_triton.SREConv2d(3, 4, 9, num_rings=4, antialias=True)
    assert repr(layer) == "SREConv2d(3, 4, kernel_size=(9, 9), stride=(1, 1), num_rings=4, antialias=True)"
    layer = sre_triton.SREConv2d(3, 4, 9, circular=False)
    assert repr(layer) == "SREConv2d(3, 4, kernel_size=(9, 9), stride=(1, 1), circular=False)"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"num_rings": 2}, {"circular": False}, {"antialias": True}])
def test_weight_has_one_entry_per_ring(name: str, options: dict[str, Any]) -> None:
    layer = ours(name)(4, 6, 5, groups=2, **options)
    geometry = ring_geometry((5,) * dimensions(name), **options)
    assert layer.geometry is geometry
    assert layer.weight.shape == ((4, 3) if "Transpose" in name else (6, 2)) + (geometry.num_rings,)
    assert layer.bias.shape == (6,)
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("name", NAMES)
def test_initial_values_spread_as_those_of_torch(name: str) -> None:
    layer, twin = ours(name)(32, 64, 5, groups=2), theirs(name)(32, 64, 5, groups=2)
    bound = 1 / math.sqrt(twin.weight[0].numel())
    # Of n uniform draws the largest misses the bound by more than a share of 10 / n with probability e^-10.
    for values in (layer.weight, layer.bias, twin.bias):
        largest = values.abs().max().item()
        assert bound * (1 - 10 / values.numel()) <= largest <= bound
    assert layer.weight.std().item() == pytest.approx(twin.weight.std().item(), rel=0.1)
    first = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, first)


# Results ----------------------------------------------------------------------------------------------

CONFIGURATIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 5, "stride": 2, "padding": 2, "groups": 2, "bias": False},
    {"kernel_size": 3, "dilation": 2, "padding": 1, "circular": False},
    {"kernel_size": 5, "padding": 3, "antialias": True},
    {"kernel_size": 1, "stride": 2},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_computes_the_definition(name: str, configuration: dict[str, Any], backend: str) -> None:
    layer = ours(name)(4, 6, **configuration, dtype=torch.float64)
    x = image(name, 4)
    extra = {}
    if "Transpose" in name and configuration.get("stride"):
        layer.output_padding = (1,) * dimensions(name)
        extra = {"output_padding": layer.output_padding}
    elif "Transpose" in name:
        extra = {"output_padding": (0,) * dimensions(name)}
    table = layer.geometry.weights
    if not layer.antialias:
        table = reference.ring_masks(layer.kernel_size, layer.num_rings, layer.circular)
    convolve = reference.ring_conv_transpose if "Transpose" in name else reference.ring_conv
    expected = convolve(
        x.numpy(), layer.weight.detach().numpy(), None if layer.bias is None else layer.bias.detach().numpy(), table,
        kernel_size=layer.kernel_size, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
        groups=layer.groups, **extra,
    )  # fmt: skip
    with sre_triton.backend(backend):
        y = layer(x)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", [1, 2, "same", "valid"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", CONVS)
def test_padding_modes(name: str, padding_mode: str, padding: int | str, backend: str) -> None:
    arguments = {"padding": padding, "padding_mode": padding_mode, "dilation": 2, "dtype": torch.float64}
    layer = ours(name)(3, 4, 5, **arguments)
    twin = dense_twin(layer, name, **arguments)
    x = image(name, 3, size=12)
    with sre_triton.backend(backend):
        y = layer(x)
    torch.testing.assert_close(y, twin(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_unbatched_input(name: str) -> None:
    layer = ours(name)(3, 4, 3, padding=1)
    x = image(name, 3, dtype=torch.float32)
    torch.testing.assert_close(layer(x[0]), layer(x)[0], rtol=0, atol=1e-6)
    assert layer(x[0]).shape == theirs(name)(3, 4, 3, padding=1)(x[0]).shape


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name: str) -> None:
    x = image(name, 3, batch=0, dtype=torch.float32)
    y = ours(name)(3, 4, 3, stride=2)(x)
    assert y.shape == theirs(name)(3, 4, 3, stride=2)(x).shape
    y.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_float_dtype_from_constructor_to_gradient(name: str, dtype: torch.dtype, backend: str) -> None:
    layer = ours(name)(4, 4, 3, padding=1, dtype=dtype, device="cpu")
    x = image(name, 4, size=5, dtype=dtype).requires_grad_()
    with sre_triton.backend(backend):
        y = layer(x)
        y.sum().backward()
    assert [t.dtype for t in (y, x.grad, layer.weight.grad, layer.bias.grad)] == [dtype] * 4
    exact = dense_twin(layer, name, padding=1, dtype=torch.float64)(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=ULPS * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
def test_conversion_after_construction(name: str) -> None:
    layer = ours(name)(4, 4, 3)
    weight = layer.weight.detach().clone()
    x = image(name, 4)
    assert layer.double()(x).dtype == torch.float64
    assert torch.equal(layer.weight.float(), weight)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_meta_device(name: str) -> None:
    layer = ours(name)(4, 6, 3, stride=2, device="meta")
    with torch.device("meta"):
        assert ours(name)(4, 6, 3).weight.is_meta
    x = image(name, 4)
    y = layer(x.to("meta", torch.float32))
    assert y.is_meta
    assert y.shape == theirs(name)(4, 6, 3, stride=2)(x.float()).shape
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(x.float()).isfinite().all()


@pytest.mark.parametrize("name", TRANSPOSED)
def test_output_size(name: str) -> None:
    arguments = {"stride": 3, "padding": 1, "dtype": torch.float64}
    layer = ours(name)(3, 4, 5, **arguments)
    twin = dense_twin(layer, name, **arguments)
    x = image(name, 3, size=4)
    least = twin(x).shape[2:]
    for extra in range(3):
        size = [n + extra for n in least]
        for requested in (size, torch.Size(size), [2, 4, *size]):
            torch.testing.assert_close(layer(x, requested), twin(x, requested), rtol=0, atol=1e-13)
        torch.testing.assert_close(layer(x[0], output_size=size), twin(x[0], output_size=size), rtol=0, atol=1e-13)
    for wrong in ([n + 3 for n in least], [n - 1 for n in least], [*least, 1, 1, 1, 1]):
        for module in (layer, twin):
            with pytest.raises(ValueError, match=r"output.size"):
                module(x, wrong)
    with pytest.raises(ValueError, match=r"requested an output size .*valid sizes range from"):
        layer(x, [n + 3 for n in least])


@pytest.mark.parametrize("as_tuple", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_attributes_changed_after_construction_take_effect(name: str, as_tuple: bool) -> None:
    changes = {"stride": 2, "padding": 2, "dilation": 2}
    layer = ours(name)(3, 4, 3, dtype=torch.float64)
    if "Transpose" in name:
        changes["output_padding"] = 1
    twin = dense_twin(layer, name, dtype=torch.float64, **changes)
    x = image(name, 3)
    layer(x)
    for attribute, value in changes.items():
        setattr(layer, attribute, (value,) * dimensions(name) if as_tuple else value)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-13)


def test_groups_padding_mode_and_padding_changed_after_construction() -> None:
    layer = sre_triton.SREConv2d(4, 4, 3, groups=2, dtype=torch.float64)
    layer.padding_mode, layer.padding = "reflect", "same"
    twin = dense_twin(layer, "Conv2d", groups=2, padding="same", padding_mode="reflect", dtype=torch.float64)
    x = image("Conv2d", 4)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-13)


# Mistakes ---------------------------------------------------------------------------------------------


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


# Gaussian mixture rings -------------------------------------------------------------------------------


def mixing(log_sigmas: Tensor) -> Tensor:
    """``P[i, j]`` by loops, in float64; 2.5066 is the reference's square root of 2 pi."""
    rings = len(log_sigmas)
    p = torch.empty(rings, rings, dtype=torch.float64)
    for i, j in itertools.product(range(rings), repeat=2):
        sigma = min(max(math.exp(log_sigmas[i].item()), 1e-2), 2 * rings)
        p[i, j] = math.exp(-0.5 * ((j - i) / sigma) ** 2) / (2.5066 * sigma)
    return p


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"circular": False}, {"antialias": True}], ids=str)
@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gmr_is_a_ring_layer_with_mixed_weights(ndim: int, k: int, options: dict[str, Any]) -> None:
    if k == 1 and not options.get("circular", True):
        options = {}
    k = min(k, 5) if ndim == 3 else k
    arguments = {"kernel_size": k, "padding": k // 2, **options}
    gmr = getattr(sre_triton, f"GMRConv{ndim}d")(4, 6, **arguments)
    plain = ours(f"Conv{ndim}d")(4, 6, **arguments, dtype=torch.float64)
    nn.init.uniform_(gmr.log_sigmas, -6, 4)  # past both clamps
    mixed = gmr.weight.detach().double() @ mixing(gmr.log_sigmas)
    scale = mixed.abs().max().item()
    torch.testing.assert_close(gmr.ring_weight().double(), mixed, rtol=0, atol=5e-7 * scale)
    with torch.no_grad():
        plain.weight.copy_(mixed)
        plain.bias.copy_(gmr.bias)
    x = image(f"Conv{ndim}d", 4)
    y = plain(x)
    torch.testing.assert_close(gmr.double()(x), y, rtol=0, atol=5e-7 * y.abs().max().item())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("k", [3, 7])
def test_gmr_kernel_is_that_of_the_reference(ndim: int, k: int) -> None:
    peer = getattr(reference.gmr_conv_package(), f"GMR_Conv{ndim}d")(2, 3, k)
    layer = getattr(sre_triton, f"GMRConv{ndim}d")(2, 3, k)
    torch.testing.assert_close(layer.log_sigmas, peer.log_sigmas, rtol=0, atol=torch.finfo(torch.float32).eps)
    layer.load_state_dict(peer.state_dict())
    kernel = sre_triton.expand_kernel(layer.ring_weight(), layer.kernel_size)
    torch.testing.assert_close(kernel, peer._make_weight_matrix(peer.weight), rtol=0, atol=5e-7)


def test_gmr_widths_learn() -> None:
    layer = sre_triton.GMRConv2d(2, 3, 5, dtype=torch.float64)
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)

    def loss(log_sigmas: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"log_sigmas": log_sigmas, "weight": weight}, (x,)).square().sum()

    inputs = [p.detach().requires_grad_() for p in (layer.log_sigmas, layer.weight)]
    assert torch.autograd.gradcheck(loss, inputs)
    layer(x).square().sum().backward()
    assert layer.log_sigmas.grad.abs().min() > 0


def test_gmr_widths_can_be_fixed() -> None:
    layer = sre_triton.GMRConv2d(2, 3, 5, train_gaussian_sigma=False, gaussian_sigma_scale=2.0)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert list(layer.state_dict()) == ["weight", "bias", "log_sigmas"]
    torch.testing.assert_close(layer.log_sigmas, torch.full((3,), math.log(5 / 4 / 2)))
    layer(torch.randn(1, 2, 7, 7)).sum().backward()
    assert layer.log_sigmas.grad is None


def test_gmr_reset_restores_the_widths() -> None:
    layer = sre_triton.GMRConv2d(2, 3, 5)
    initial = layer.log_sigmas.detach().clone()
    nn.init.zeros_(layer.log_sigmas)
    layer.reset_parameters()
    assert torch.equal(layer.log_sigmas, initial)


def test_gmr_refuses_a_scale_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="gaussian_sigma_scale must be positive, got 0"):
        sre_triton.GMRConv2d(2, 3, 5, gaussian_sigma_scale=0)
