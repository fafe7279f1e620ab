"""The operators as PyTorch's dispatcher sees them: contracts, fakes, layouts, adjoints, autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sre_triton
from sre_triton.geometry.conv import ConvArgs
from sre_triton.operators import operators as _ops
from tests.oracle import BACKENDS, CASES, Case

OPERATORS: tuple[Callable[..., Any], ...] = (
    _ops.ring_conv.overload,
    _ops.ring_conv_transpose.overload,
    _ops.ring_conv_weight_grad.overload,
    _ops.ring_conv_backward.overload,
)
backends = pytest.mark.parametrize("backend", BACKENDS)
operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda op: op.name().partition("::")[2])
PLAIN_CASES = tuple(c for c in CASES if not c.transposed)
plain_cases = pytest.mark.parametrize("case", PLAIN_CASES, ids=str)


def arguments(
    operator: Callable[..., Any], case: Case, backend: str, layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous
) -> tuple[Any, ...]:
    """What an operator takes for a convolution, its activations laid out by ``layout``.

    Called on a transposed case, the convolution is the one that it transposes.
    """
    x, weight, _ = case.tensors()
    y = case.dense(x, weight)
    if case.transposed:
        x, y = y, x
    trailing = (*case.operator_args, backend)
    fine, coarse = layout(x), layout(torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1)))
    if operator is _ops.ring_conv.overload:
        return (fine, weight, torch.linspace(-1, 1, weight.shape[0], dtype=x.dtype), *trailing)
    if operator is _ops.ring_conv_transpose.overload:
        bias = torch.linspace(-1, 1, weight.shape[1] * case.groups, dtype=x.dtype)
        conv_args = ConvArgs(*trailing)
        extra = conv_args.spec(case.rings).output_padding(fine.shape[2:], coarse.shape[2:])
        return (coarse, weight, bias, extra, *trailing)
    if operator is _ops.ring_conv_weight_grad.overload:
        return (fine, coarse, case.rings, *trailing)
    return (fine, coarse, weight, *trailing)


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])


def wide_rows(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def swapped_axes(x: Tensor) -> Tensor:
    return x.transpose(1, -1).contiguous().transpose(1, -1)


LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": channels_last,
    "rows": wide_rows,
    "axes": swapped_axes,
}


# Contracts ------------------------------------------------------------------------------------------


@backends
@operators
@pytest.mark.parametrize("case", [CASES[i] for i in (1, 4, 6, 9, 11)], ids=str)
def test_opcheck(case: Case, operator: Callable[..., Any], backend: str) -> None:
    torch.library.opcheck(operator, arguments(operator, case, backend))


@operators
@pytest.mark.parametrize("layout", ["channels_last", "axes"])
@pytest.mark.parametrize("case", [PLAIN_CASES[2], PLAIN_CASES[-1]], ids=str)
def test_opcheck_of_other_layouts(case: Case, layout: str, operator: Callable[..., Any]) -> None:
    torch.library.opcheck(operator, arguments(operator, case, "auto", LAYOUTS[layout]))


@operators
def test_opcheck_of_an_empty_batch(operator: Callable[..., Any]) -> None:
    torch.library.opcheck(operator, arguments(operator, Case(batch=0, padding=1), "auto"))


def test_opcheck_without_bias() -> None:
    for operator in (_ops.ring_conv.overload, _ops.ring_conv_transpose.overload):
        x, weight, _, *rest = arguments(operator, Case(padding=1), "auto")
        torch.library.opcheck(operator, (x, weight, None, *rest))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("antialias", [False, True])
def test_opcheck_of_the_kernel_operators(ndim: int, antialias: bool) -> None:
    size = (5,) * ndim
    torch.library.opcheck(_ops.expand_kernel.overload, (torch.randn(3, 2, 3), size, True, antialias))
    torch.library.opcheck(_ops.collapse_kernel.overload, (torch.randn(3, 2, *size), 3, True, antialias))
    torch.library.opcheck(_ops.expand_kernel.overload, (torch.randn(3, 2, 3), size, True, antialias, torch.float16))
    torch.library.opcheck(
        _ops.collapse_kernel.overload, (torch.randn(3, 2, *size), 3, True, antialias, torch.bfloat16)
    )  # fmt: skip


# Fakes and layouts ----------------------------------------------------------------------------------

# Sizes of 1 make a tensor contiguous and channels_last at once; only its strides tell which.
STRIDE_CASES = (
    Case(ndim=1, padding=1),
    Case(ndim=1, batch=1, out_channels=1, size=(3,)),
    Case(padding=1),
    Case(batch=1, padding=1),
    Case(in_channels=1, padding=1),
    Case(out_channels=1, padding=1),
    Case(in_channels=1, out_channels=1, padding=1),
    Case(size=(3, 1), padding=(0, 1)),
    Case(size=(1, 5), padding=1, stride=2),
    Case(size=(3, 3)),
    Case(batch=1, in_channels=1, out_channels=1, size=(1, 1), kernel_size=1),
    Case(batch=0, padding=1),
    Case(size=(5, 5), stride=2, groups=2),
    Case(ndim=3, in_channels=2, out_channels=2, padding=1),
    Case(ndim=3, in_channels=1, out_channels=2, size=(1, 4, 3), padding=1),
    Case(ndim=3, batch=1, in_channels=2, out_channels=1, size=(3, 3, 3)),
)


@backends
@operators
@pytest.mark.parametrize(
    ("case", "layout"),
    [(c, name) for c in STRIDE_CASES for name in LAYOUTS if c.ndim > 1 or name != "channels_last"],
    ids=str,
)
def test_fakes_have_the_strides_of_the_real_thing(
    case: Case, layout: str, operator: Callable[..., Any], backend: str
) -> None:
    args = arguments(operator, case, backend, LAYOUTS[layout])
    with FakeTensorMode() as mode:
        faked = outputs(operator(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]))
    real = outputs(operator(*args))
    assert len(faked) == len(real)
    for fake, tensor in zip(faked, real, strict=True):
        assert fake.shape == tensor.shape
        assert fake.stride() == tensor.stride()
        assert fake.dtype == tensor.dtype
        assert fake.storage_offset() == tensor.storage_offset() == 0


@backends
@operators
@pytest.mark.parametrize("case", [c for c in PLAIN_CASES if c.ndim > 1], ids=str)
def test_activations_are_laid_out_as_the_first_argument(case: Case, operator: Callable[..., Any], backend: str) -> None:
    args = list(arguments(operator, case, backend))
    # The second activation has the other layout, which must not matter.
    second = 1 if operator in (_ops.ring_conv_weight_grad.overload, _ops.ring_conv_backward.overload) else None
    for first_layout, other_layout in (
        (channels_last, torch.Tensor.contiguous),
        (torch.Tensor.contiguous, channels_last),
    ):
        args[0] = first_layout(args[0])
        if second is not None:
            args[second] = other_layout(args[second])
        first, *others = outputs(operator(*args))
        if operator is not _ops.ring_conv_weight_grad.overload:
            assert first.stride() == first_layout(first).stride()
            assert first.stride() != other_layout(first).stride()
        for gradient_of_weight in others:
            assert gradient_of_weight.is_contiguous()


@backends
@operators
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_never_share_memory_with_arguments(case: Case, operator: Callable[..., Any], backend: str) -> None:
    args = arguments(operator, replace(case, kernel_size=1, num_rings=1, padding=0, output_padding=0), backend)
    taken = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
    assert taken.isdisjoint(result.untyped_storage().data_ptr() for result in outputs(operator(*args)))


# Adjoints -------------------------------------------------------------------------------------------


@backends
@plain_cases
def test_adjoint_identities(case: Case, backend: str) -> None:
    x, g, weight, *trailing = arguments(_ops.ring_conv_backward.overload, case, backend)
    extra = ConvArgs(*trailing).spec(case.rings).output_padding(x.shape[2:], g.shape[2:])
    forward = (_ops.ring_conv.overload(x, weight, None, *trailing) * g).sum()
    transpose = (x * _ops.ring_conv_transpose.overload(g, weight, None, extra, *trailing)).sum()
    weight_grad = (weight * _ops.ring_conv_weight_grad.overload(x, g, case.rings, *trailing)).sum()
    grad_x, grad_weight = _ops.ring_conv_backward.overload(x, g, weight, *trailing)
    exact = {"rtol": 1e-12, "atol": 1e-10}
    torch.testing.assert_close(transpose, forward, **exact)
    torch.testing.assert_close(weight_grad, forward, **exact)
    torch.testing.assert_close((x * grad_x).sum(), forward, **exact)
    torch.testing.assert_close((weight * grad_weight).sum(), forward, **exact)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_collapse_is_the_adjoint_of_expand(ndim: int, antialias: bool) -> None:
    size = (5,) * ndim
    weight = torch.randn(3, 2, 3, dtype=torch.float64)
    kernel = torch.randn(3, 2, *size, dtype=torch.float64)
    expanded = (_ops.expand_kernel.overload(weight, size, True, antialias) * kernel).sum()
    collapsed = (weight * _ops.collapse_kernel.overload(kernel, 3, True, antialias)).sum()
    torch.testing.assert_close(expanded, collapsed, rtol=1e-12, atol=1e-12)


# Autocast -------------------------------------------------------------------------------------------


@backends
@operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_does_not_reach_into_an_operator(
    operator: Callable[..., Any], dtype: torch.dtype, backend: str
) -> None:
    case = Case(in_channels=32, out_channels=32, size=(16, 16), kernel_size=5, padding=2)
    args = [a.to(dtype) if isinstance(a, Tensor) else a for a in arguments(operator, case, backend)]
    expected = outputs(operator(*args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = outputs(operator(*args))
    for result, want in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert torch.equal(result, want)


@backends
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_is_an_explicit_cast(case: Case, backend: str) -> None:
    def run(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = case.leaves(torch.float32)
        y = case.ring(*[t.to(dtype) for t in leaves])
        return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    with sre_triton.backend(backend):
        expected = run(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = run(torch.float32)
    assert results[0].dtype == torch.bfloat16
    for result, want in zip(results, expected, strict=True):
        assert result.dtype == want.dtype
        assert torch.equal(result, want)
