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


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_layer_of_one_tap_is_the_convolution_itself(ndim: int) -> None:
    """Nothing but PyTorch's own function of the same weight, derivatives included: so it costs the same."""
    layer = getattr(sre_triton, f"SREConv{ndim}d")(6, 8, 1, 2, groups=2)
    function = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[ndim - 1]
    kernel = layer.weight.unflatten(2, (1,) * ndim)
    x = torch.randn(2, 6, *[5] * ndim, requires_grad=True)
    y, truth = layer(x), function(x, kernel, layer.bias, 2, groups=2)
    assert torch.equal(y, truth)
    assert y.grad_fn is not None
    assert truth.grad_fn is not None
    assert y.grad_fn.name() == truth.grad_fn.name()
    leaves = [x, layer.weight, layer.bias]
    for ours, theirs in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (y, truth)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_layer_of_one_tap_goes_where_it_is_asked_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = sre_triton.SREConv2d(6, 8, 1), torch.randn(2, 6, 5, 5, requires_grad=True)
    asked: list[str] = []
    for name in ("dense", "ringwise"):
        monkeypatch.setattr(sre_triton.functional.calls, "check_function", lambda *_, name=name: asked.append(name))
        with sre_triton.backend(name):
            torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight[..., None], layer.bias))
    layer(x)  # asked for nothing: it goes past the checks of the others
    assert asked == ["dense", "ringwise"]
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match=r"expected input\[2, 5, 5, 5\] to have 6 channels"):
        layer(x[:, :5])
