"""The functions compute the convolution with the expanded kernel: values, derivatives, precision and errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import sre_triton
from sre_triton import functional as S
from tests.oracle import BACKENDS, CASES, Case, expand, ring_table

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def assert_same(call: Callable[..., Tensor], truth: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Outputs, and gradients under a random cotangent, agree to 1e-9."""
    y, expected = call(*leaves), truth(*leaves)
    torch.testing.assert_close(y, expected, **EXACT)
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    for got, want in zip(
        torch.autograd.grad(y, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(got, want, **EXACT)


# PyTorch's own samples --------------------------------------------------------------------------------

# How many of the samples have an odd cubic kernel in PyTorch 2.13. A count of zero would pass unseen.
SAMPLES = {
    "conv1d": 8,
    "conv2d": 16,
    "conv3d": 4,
    "conv_transpose1d": 6,
    "conv_transpose2d": 6,
    "conv_transpose3d": 4,
}


def is_odd_and_cubic(kernel: Tensor) -> bool:
    size = set(kernel.shape[2:])
    return len(size) == 1 and size.pop() % 2 == 1


def convolve_expanded(
    x: Tensor, weight: Tensor, *bias: Tensor, convolve: Callable[..., Tensor], expanded: Callable[[Tensor], Tensor]
) -> Tensor:
    return convolve(x, expanded(weight), *bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SAMPLES)
def test_agrees_on_the_samples_of_pytorch(name: str, backend: str) -> None:
    from torch.testing._internal.common_methods_invocations import op_db  # takes seconds to import

    (info,) = [op for op in op_db if op.name == f"nn.functional.{name}"]
    samples = [s for s in info.sample_inputs("cpu", torch.float64) if is_odd_and_cubic(s.args[0])]
    assert len(samples) >= SAMPLES[name]
    dense, ring = getattr(F, name), getattr(S, f"sre_{name}")
    for sample in samples:
        kernel, bias = sample.args
        k, ndim = kernel.shape[-1], kernel.dim() - 2
        weight = S.project_kernel(kernel)
        table = ring_table(k, ndim, weight.shape[2], True, False)
        leaves = [t.detach().clone().requires_grad_() for t in (sample.input, weight, bias) if t is not None]
        with sre_triton.backend(backend):
            assert_same(
                partial(ring, kernel_size=k, **sample.kwargs),
                partial(
                    convolve_expanded,
                    convolve=partial(dense, **sample.kwargs),
                    expanded=partial(expand, table=table, kernel_size=k, ndim=ndim),
                ),
                leaves,
            )


# Any shape ------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any convolution that PyTorch accepts, up to 7 taps wide and with a handful of channels."""
    ndim = draw(st.integers(1, 3))
    kernel_size = draw(st.sampled_from([1, 3, 5, 7] if ndim < 3 else [1, 3, 5]))
    # The last ring of a kernel that is not circular has no area to cover a pixel with.
    circular, antialias = draw(st.sampled_from([(True, False), (True, True), (False, False)]))
    num_rings = draw(st.sampled_from(possible_rings(kernel_size, ndim, circular, antialias)))
    groups = draw(st.integers(1, 3))
    in_channels, out_channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    stride, dilation, padding = sizes(1, 3), sizes(1, 2), sizes(0, kernel_size + 1)
    reach = [d * (kernel_size - 1) for d in dilation]
    transposed = draw(st.booleans())
    output_padding: tuple[int, ...] = (0,) * ndim
    if transposed:
        output_padding = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        # (n - 1) * s + reach + 1 + output_padding - 2p must be positive
        least = [
            max(1, -((r + o - 2 * p) // s) + 1)
            for s, r, o, p in zip(stride, reach, output_padding, padding, strict=True)
        ]
    else:
        least = [max(1, r + 1 - 2 * p) for r, p in zip(reach, padding, strict=True)]
    size = tuple(n + draw(st.integers(0, 4)) for n in least)
    return Case(
        ndim, draw(st.integers(0, 3)), in_channels, out_channels, size, kernel_size, num_rings, stride, padding,
        dilation, groups, circular, antialias, transposed, output_padding,
    )  # fmt: skip


def possible_rings(kernel_size: int, ndim: int, circular: bool, antialias: bool) -> list[int]:
    def exists(rings: int) -> bool:
        try:
            sre_triton.ring_geometry((kernel_size,) * ndim, rings, circular, antialias)
        except ValueError:
            return False
        return True

    return [rings for rings in range(1, kernel_size + 1) if exists(rings)]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=4 * settings().max_examples)
@given(case=cases())
def test_agrees_on_any_shape(backend: str, case: Case) -> None:
    with sre_triton.backend(backend):
        assert_same(case.ring, case.dense, list(case.leaves()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_automatic_plan_agrees(case: Case) -> None:
    assert_same(case.ring, case.dense, list(case.leaves()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [c for c in CASES if c.ndim > 1], ids=str)
def test_agrees_in_channels_last(case: Case, backend: str) -> None:
    with sre_triton.backend(backend):
        assert_same(case.ring, case.dense, list(case.leaves(channels_last=True)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_on_strided_and_expanded_input(backend: str) -> None:
    case = Case(padding=1)
    weight = case.tensors()[1].requires_grad_()
    n, c, h, w = case.input_shape
    wide = torch.randn(n, h, 2 * w, c, dtype=torch.float64)
    for x in (
        wide[:, :, ::2].permute(0, 3, 1, 2),
        wide[:, :, :w].permute(0, 3, 2, 1),
        wide[:1, :, :w, :1].permute(0, 3, 1, 2).expand(n, c, -1, -1),
    ):
        assert not x.is_contiguous()
        with sre_triton.backend(backend):
            assert_same(case.ring, case.dense, [x.requires_grad_(), weight])


# Low precision --------------------------------------------------------------------------------------

LOW_PRECISION_CASES = (
    Case(in_channels=32, out_channels=32, size=(12, 12), kernel_size=5, padding=2),
    Case(in_channels=32, out_channels=32, size=(12, 12), kernel_size=5, padding=2, antialias=True),
    Case(in_channels=32, out_channels=16, size=(13, 13), kernel_size=9, padding=4, stride=2, groups=2),
    Case(in_channels=24, out_channels=24, size=(9, 9), transposed=True, stride=2, padding=1),
    Case(ndim=3, in_channels=16, out_channels=16, size=(6, 6, 6), padding=1),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LOW_PRECISION_CASES, ids=str)
def test_low_precision_error_is_at_most_twice_that_of_the_dense_convolution(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    rounded = case.tensors(dtype)
    cotangent = torch.randn(case.ring(*rounded).shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def results(call: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in rounded]
        y = call(*leaves)
        grads = torch.autograd.grad(y, leaves, cotangent.to(dtype))
        return dict(
            zip(("output", "grad of input", "grad of weight", "grad of bias"), (y.detach(), *grads), strict=True)
        )

    with sre_triton.backend(backend):
        ours = results(case.ring, dtype)
    reference, truth = results(case.dense, dtype), results(case.dense, torch.float64)
    for name, exact in truth.items():
        assert ours[name].dtype == dtype
        error, allowed = ((r[name].double() - exact).abs().max().item() for r in (ours, reference))
        ulp = torch.finfo(dtype).eps * exact.abs().max().item()
        assert error <= 2 * allowed + ulp, name


# Arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_same_padding_keeps_the_size_and_valid_is_none(ndim: int) -> None:
    case = Case(ndim=ndim, size=(9, 8, 7)[:ndim], dilation=(2, 1, 3)[:ndim])
    x, weight, bias = case.tensors()
    ring = getattr(S, f"sre_conv{ndim}d")
    dense = getattr(F, f"conv{ndim}d")
    kernel = S.expand_kernel(weight, (3,) * ndim)
    same = ring(x, weight, bias, padding="same", dilation=case.dilation, kernel_size=3)
    assert same.shape[2:] == x.shape[2:]
    torch.testing.assert_close(same, dense(x, kernel, bias, padding="same", dilation=case.dilation), **EXACT)
    valid = ring(x, weight, bias, padding="valid", dilation=case.dilation, stride=2, kernel_size=3)
    assert torch.equal(valid, ring(x, weight, bias, dilation=case.dilation, stride=2, kernel_size=3))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unbatched_input_is_a_batch_of_one(case: Case) -> None:
    x, weight, bias = case.tensors()
    y = case.ring(x[0], weight, bias)
    torch.testing.assert_close(y, case.dense(x[0], weight, bias), **EXACT)
    assert torch.equal(y, case.ring(x[:1], weight, bias)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bias_may_be_none(case: Case, backend: str) -> None:
    x, weight, _ = case.leaves()
    with sre_triton.backend(backend):
        assert_same(case.ring, case.dense, [x, weight])


def test_sizes_may_be_ints_sequences_or_numpy_integers() -> None:
    x, weight, bias = Case().tensors()
    expected = S.sre_conv2d(x, weight, bias, (2, 2), (1, 1), (1, 1), kernel_size=(3, 3))
    for two, one, three in ((2, 1, 3), ([2, 2], [1], [3, 3]), (np.int64(2), np.int32(1), np.int64(3))):
        assert torch.equal(S.sre_conv2d(x, weight, bias, two, one, one, kernel_size=three), expected)


def test_positional_arguments_are_those_of_pytorch() -> None:
    x, weight, bias = Case(groups=2).tensors()
    kernel = S.expand_kernel(weight, (3, 3))
    args = ((2, 1), (1, 2), (1, 2), 2)
    y = S.sre_conv2d(x, weight, bias, *args, kernel_size=3)
    torch.testing.assert_close(y, F.conv2d(x, kernel, bias, *args), **EXACT)
    x, weight, bias = Case(groups=2, transposed=True).tensors()
    kernel = S.expand_kernel(weight, (3, 3))
    args = ((2, 1), (1, 2), (1, 0), 2, (1, 2))
    y = S.sre_conv_transpose2d(x, weight, bias, *args, kernel_size=3)
    torch.testing.assert_close(y, F.conv_transpose2d(x, kernel, bias, *args), **EXACT)


# Errors ---------------------------------------------------------------------------------------------
# Each row changes one argument of a good call. Both functions must refuse it, with an error of PyTorch's kind
# unless PyTorch accepts it or dies of it further down.

X, BIAS = torch.randn(2, 4, 8, 8), torch.randn(6)
FORWARD = {"input": X, "weight": torch.randn(6, 4, 2), "bias": BIAS}
TRANSPOSED = {"input": X, "weight": torch.randn(4, 6, 2), "bias": BIAS}

BAD_FOR_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"input": X[:, :3]}, r"expected input\[2, 3, 8, 8\] to have 4 channels, but got 3"),
    ({"input": X[0, 0]}, r"Expected 3D .* or 4D .* input .*2d, but got input of size: \[8, 8\]"),
    ({"input": X[None]}, r"Expected 3D .* or 4D .* input .*2d, but got input of size: \[1, 2, 4, 8, 8\]"),
    ({"input": X.double()}, r"Input type \(torch.float64\) and weight type \(torch.float32\) should be the same"),
    ({"input": X.long()}, r"Input type \(torch.int64\) and weight type"),
    ({"bias": BIAS.double()}, r"Input type \(torch.float32\) and bias type \(torch.float64\) should be the same"),
    ({"bias": BIAS[:5]}, r"expected bias to be 1-dimensional with 6 elements, but got bias of size \[5\]"),
    ({"bias": BIAS[:, None]}, r"expected bias to be 1-dimensional with 6 elements, but got bias of size \[6, 1\]"),
    ({"stride": 0}, r"non-positive stride .* stride=\(0, 0\)"),
    ({"stride": (1, -1)}, r"non-positive stride .* stride=\(1, -1\)"),
    ({"stride": (1, 1, 1)}, r"expected stride to be .* list of 2 values, got stride=\(1, 1, 1\)"),
    ({"stride": ()}, r"expected stride to be .* list of 2 values, got stride=\(\)"),
    ({"padding": -1}, r"negative padding .* padding=\(-1, -1\)"),
    ({"padding": (1, 1, 1)}, r"expected padding to be .* list of 2 values, got padding=\(1, 1, 1\)"),
    ({"dilation": 0}, r"non-positive dilation .* dilation=\(0, 0\)"),
    ({"groups": 0}, "non-positive groups .* groups=0"),
    ({"groups": -2}, "non-positive groups .* groups=-2"),
    ({"stride": 1.5}, "stride must be an int or a tuple of 2 ints, got 1.5"),
    ({"stride": (1.5, 1)}, r"stride must be an int or a tuple of 2 ints, got \(1.5, 1\)"),
    ({"padding": None}, "padding must be an int or a tuple of 2 ints, got None"),
    ({"dilation": "1"}, "dilation must be an int or a tuple of 2 ints, got '1'"),
    ({"groups": 1.0}, "groups must be an int, got 1.0"),
    ({"input": X.numpy()}, "input must be a Tensor, got ndarray"),
    ({"input": None}, "input must be a Tensor, got NoneType"),
    ({"bias": [0.0] * 6}, "bias must be a Tensor or None, got list"),
    ({"unknown": 1}, "unexpected keyword argument 'unknown'"),
]
BAD_FORWARD: list[tuple[dict[str, Any], str]] = [
    ({"input": X[:, :, :2]}, r"padded input size per channel: \(2( x|,) 8\). Kernel size: \(3( x|,) 3\)"),
    ({"dilation": (1, 4)}, r"padded input size per channel: \(8( x|,) 8\). Kernel size: \(3( x|,) 9\)"),
    ({"groups": 3}, r"groups=3, .* expected input\[2, 4, 8, 8\] to have 12 channels, but got 4"),
    ({"groups": 4}, "groups=4, expected weight to be divisible by 4 at dimension 0"),
    ({"padding": "full"}, "Invalid padding string: 'full', expected 'valid' or 'same'"),
    (
        {"padding": "same", "stride": 2},
        r"padding='same' is not supported for strided convolutions, got stride=\(2, 2\)",
    ),
]
BAD_TRANSPOSED: list[tuple[dict[str, Any], str]] = [
    ({"groups": 3}, "groups=3, expected .* divisible"),
    ({"groups": 4}, "expected bias to be 1-dimensional with 24 elements"),
    ({"padding": "same"}, "padding must be an int or a tuple of 2 ints, got 'same'"),
    ({"input": X[:, :, :1, :1], "padding": 2}, r"Calculated output size per channel: \(-1, -1\)"),
    ({"output_padding": -1}, r"negative output_padding .* output_padding=\(-1, -1\)"),
    ({"output_padding": 1}, r"output padding must be smaller than either stride or dilation.*output_padding=\(1, 1\)"),
    ({"output_padding": (0, 0, 0)}, "expected output_padding to be"),
]


@pytest.mark.parametrize(
    ("transposed", "change", "message"),
    [(False, *row) for row in BAD_FOR_BOTH + BAD_FORWARD] + [(True, *row) for row in BAD_FOR_BOTH + BAD_TRANSPOSED],
)
def test_bad_arguments_raise_as_in_pytorch_and_are_named(
    transposed: bool, change: dict[str, Any], message: str
) -> None:
    good, name = (TRANSPOSED, "conv_transpose2d") if transposed else (FORWARD, "conv2d")
    arguments = good | change
    kernel = S.expand_kernel(good["weight"], (3, 3))
    with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
        getattr(F, name)(**(arguments | {"weight": kernel}))
    with pytest.raises(theirs.type, match=message):
        getattr(S, f"sre_{name}")(**arguments, kernel_size=3)


# Of these PyTorch accepts the like or has none: a dense kernel needs no odd size, and tells its own.
@pytest.mark.parametrize("good", [FORWARD, TRANSPOSED], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": FORWARD["weight"][0]}, RuntimeError, r"3D ring weights .* size: \[4, 2\]"),
        ({"weight": FORWARD["weight"].numpy()}, TypeError, "weight must be a Tensor, got ndarray"),
        ({"input": X.to("meta")}, RuntimeError, "input on meta, weight on cpu, bias on cpu"),
        ({"kernel_size": 2}, ValueError, "odd"),
        ({"kernel_size": (3, 5)}, ValueError, r"kernel_size must be the same in every dimension .* \(3, 5\)"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be positive"),
        ({"kernel_size": (3, 3, 3)}, RuntimeError, r"expected kernel_size .* got kernel_size=\(3, 3, 3\)"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size must be an int or a tuple of 2 ints, got 3.0"),
        ({"kernel_size": "3"}, TypeError, "kernel_size must be an int or a tuple of 2 ints, got '3'"),
        ({"kernel_size": 1}, ValueError, "num_rings=2 .* more rings than taps"),
        ({"circular": False, "antialias": True}, ValueError, "antialias=True needs circular=True"),
    ],
)
def test_bad_ring_arguments_are_named(
    good: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    function = S.sre_conv2d if good is FORWARD else S.sre_conv_transpose2d
    with pytest.raises(error, match=message):
        function(**({"kernel_size": 3} | good | change))


TO_LAYOUTS = {
    "sparse_coo": Tensor.to_sparse,
    "sparse_csr": Tensor.to_sparse_csr,
    "_mkldnn": Tensor.to_mkldnn,
}


@pytest.mark.parametrize("good", [FORWARD, TRANSPOSED], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(
    ("name", "layout"), [pair for pair in itertools.product(FORWARD, TO_LAYOUTS) if pair != ("bias", "sparse_csr")]
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_and_opaque_tensors_are_named(name: str, layout: str, good: dict[str, Tensor]) -> None:
    function = S.sre_conv2d if good is FORWARD else S.sre_conv_transpose2d
    for wrong in ({**good, name: TO_LAYOUTS[layout](good[name])}, {name: TO_LAYOUTS[layout](torch.zeros(4, 4, 4))}):
        with pytest.raises(RuntimeError, match=rf"^{name} must be strided, got a tensor of layout torch\.{layout}$"):
            function(**{**good, **wrong}, kernel_size=3)


def test_sparse_kernels_and_residuals_are_named() -> None:
    weight, dense = torch.ones(2, 2, 2).to_sparse(), torch.ones(2, 2, 3, 3).to_sparse()
    residual = torch.ones(2, 6, 5, 5).to_sparse()
    calls: dict[str, Callable[[], Tensor]] = {
        "weight": lambda: S.expand_kernel(weight, (3, 3)),
        "dense": lambda: S.project_kernel(dense),
        "residual": lambda: S.sre_conv_act(**FORWARD, kernel_size=3, residual=residual),
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=f"^{name} must be strided"):
            call()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_only_floating_dtypes_are_convolved(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=f"floating-point input, got input of type {dtype}"):
        S.sre_conv2d(X.to(dtype), FORWARD["weight"].to(dtype), kernel_size=3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_nan_under_a_kept_tap_spreads(transposed: bool, backend: str) -> None:
    case = Case(in_channels=2, out_channels=2, size=(7, 7), kernel_size=5, padding=2, transposed=transposed)
    x, weight, _ = case.tensors()
    x[0, 0, 3, 3] = float("nan")
    with sre_triton.backend(backend):
        y = case.ring(x, weight)
    reached = torch.zeros(7, 7, dtype=torch.bool)
    reached[1:6, 1:6] = torch.from_numpy(ring_table(5, 2, 3, True, False).any(axis=0).reshape(5, 5))
    assert y[0].isnan().all(0)[reached].all()
    assert not y[1].isnan().any()
