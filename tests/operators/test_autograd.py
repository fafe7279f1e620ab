"""Derivatives of every order on every path, what they save, and how transforms take them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import sre_triton
from sre_triton.planning.plan import recording
from tests.oracle import BACKENDS, CASES, Case

EXACT = {"rtol": 1e-9, "atol": 1e-9}

# Finite differences evaluate a function once per input, so these are smaller than CASES.
TINY_CASES = (
    Case(ndim=1, in_channels=2, out_channels=2, size=(5,), padding=1),
    Case(ndim=1, in_channels=2, out_channels=2, size=(6,), kernel_size=5, stride=2, dilation=2, padding=5, groups=2),
    Case(ndim=1, in_channels=2, out_channels=1, size=(3,), transposed=True, stride=2, dilation=3, output_padding=2),
    Case(in_channels=2, out_channels=2, size=(4, 3), padding=1),
    Case(in_channels=2, out_channels=2, size=(5, 4), kernel_size=5, padding=2, antialias=True),
    Case(in_channels=2, out_channels=4, size=(5, 6), stride=(2, 3), dilation=(2, 1), padding=(3, 1), groups=2),
    Case(in_channels=2, out_channels=1, size=(4, 4), padding=1, circular=False),
    Case(in_channels=2, out_channels=2, size=(3, 2), transposed=True, stride=(1, 2), output_padding=(0, 1), padding=1),
    Case(ndim=3, in_channels=1, out_channels=2, size=(3, 3, 2), padding=1),
    Case(ndim=3, in_channels=2, out_channels=2, size=(3, 4, 3), stride=2, padding=1, groups=2, antialias=True),
    Case(ndim=3, in_channels=2, out_channels=1, size=(2, 2, 1), transposed=True, dilation=(1, 2, 1)),
)
backends = pytest.mark.parametrize("backend", BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, **EXACT)


def cotangent_of(y: Tensor) -> Tensor:
    return torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))


# First, second and third order ----------------------------------------------------------------------


@backends
@pytest.mark.parametrize("case", TINY_CASES, ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    with sre_triton.backend(backend):
        assert torch.autograd.gradcheck(case.ring, case.leaves())


@backends
@pytest.mark.parametrize("case", TINY_CASES, ids=str)
def test_gradgradcheck(case: Case, backend: str) -> None:
    with sre_triton.backend(backend):
        assert torch.autograd.gradgradcheck(case.ring, case.leaves(), fast_mode=case.ndim > 1)


@backends
@every_case
def test_third_derivatives_agree_with_the_dense_convolution(case: Case, backend: str) -> None:
    case = replace(case, output_padding=0)  # PyTorch's own transposed convolution has no third derivative with it

    def derivatives(call: Callable[..., Tensor]) -> list[Tensor]:
        leaves = case.leaves()
        value, found = call(*leaves).pow(3).sum(), []
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.square().mean() for g in grads)
            found += grads
        return [g.detach() for g in found]

    with sre_triton.backend(backend):
        ours = derivatives(case.ring)
    for got, want in zip(ours, derivatives(case.dense), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * want.abs().max().item())


@backends
@every_case
def test_gradients_are_formed_for_what_requires_them_alone(case: Case, backend: str) -> None:
    full = case.ring(*case.leaves())
    cotangent = cotangent_of(full)
    expected = torch.autograd.grad(case.dense(*(leaves := case.leaves())), leaves, cotangent)
    for chosen in [c for size in (1, 2, 3) for c in combinations(range(3), size)]:
        tensors = list(case.tensors())
        for i in chosen:
            tensors[i].requires_grad_()
        with sre_triton.backend(backend), recording() as records:
            case.ring(*tensors).backward(cotangent)
        for i, (tensor, want) in enumerate(zip(tensors, expected, strict=True)):
            assert (tensor.grad is None) == (i not in chosen)
            if tensor.grad is not None:
                assert_close(tensor.grad, want)
        backward_kinds = {call.kind for call, _ in records[1:]}
        if case.transposed:
            assert backward_kinds == {kind for i, kind in enumerate(("forward", "weight_grad")) if i in chosen}
        elif {0, 1} <= set(chosen):
            assert backward_kinds == {"backward"}
        else:
            assert backward_kinds == {kind for i, kind in enumerate(("transpose", "weight_grad")) if i in chosen}


@backends
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("layout", ["expanded", "channels_last", "transposed", "strided"])
def test_any_layout_of_the_incoming_gradient(layout: str, channels_last: bool, backend: str) -> None:
    for case in (Case(padding=1, stride=2), Case(padding=1), Case(transposed=True), CASES[-1]):
        with sre_triton.backend(backend):
            leaves = case.leaves(channels_last=channels_last)
            y = case.ring(*leaves)
            cotangent = cotangent_of(y)
            if layout == "expanded":
                cotangent = cotangent.flatten()[0].expand(y.shape)
            elif layout == "channels_last":
                cotangent = case.channels_last(cotangent)
            elif layout == "transposed":
                cotangent = cotangent.transpose(-1, 1).contiguous().transpose(-1, 1)
            else:
                cotangent = cotangent.repeat_interleave(2, dim=-1)[..., ::2]
            grads = torch.autograd.grad(y, leaves, cotangent)
        expected = torch.autograd.grad(case.dense(*leaves), leaves, cotangent.contiguous())
        for got, want in zip(grads, expected, strict=True):
            assert_close(got, want)


# Memory ---------------------------------------------------------------------------------------------


def floats_saved(call: Callable[[], Tensor], allowed: Sequence[Tensor]) -> int:
    """How many floats a call saves for backward, none of which may be outside of the tensors ``allowed``."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call()
    assert y.grad_fn is not None
    assert saved.keys() <= {tensor.untyped_storage().data_ptr() for tensor in allowed}
    return sum(saved.values())


@backends
@every_case
def test_layers_save_their_input_and_weight_alone(case: Case, backend: str) -> None:
    layer = case.layer()
    for x in (torch.randn(case.input_shape), torch.randn(case.input_shape).requires_grad_()):
        with sre_triton.backend(backend):
            for batch in (x, x[0]):
                saved = floats_saved(partial(layer, batch), (x, layer.weight))
                assert 0 < saved <= x.numel() + layer.weight.numel()


@backends
def test_a_differentiated_backward_saves_no_kernel_and_no_ring_sums(backend: str) -> None:
    case = Case(in_channels=16, out_channels=16, size=(12, 12), kernel_size=7, padding=3)
    x, weight, bias = case.leaves()
    with sre_triton.backend(backend):
        y = case.ring(x, weight, bias)
        cotangent = cotangent_of(y).requires_grad_()

        def backward() -> Tensor:
            return torch.autograd.grad(y, (x, weight), cotangent, create_graph=True)[0]

        assert floats_saved(backward, (x, weight, cotangent)) > 0


@pytest.mark.parametrize("training", [True, False])
@every_case
def test_nothing_keeps_the_input_alive(case: Case, training: bool) -> None:
    layer = case.layer().train(training)
    x = torch.randn(case.input_shape)
    alive = weakref.ref(x)
    y = layer(x)
    with torch.no_grad():
        layer(x)
    del x
    y.sum().backward()
    assert alive() is None  # although y is


@pytest.mark.parametrize("training", [True, False])
@every_case
def test_weights_changed_in_place_take_effect_at_the_next_call(case: Case, training: bool) -> None:
    layer = case.layer(dtype=torch.float64).train(training).requires_grad_(False)
    x = case.tensors()[0]
    layer(x)
    layer.weight.mul_(-3)
    assert_close(layer(x), case.dense(x, layer.weight, layer.bias))
    layer.weight.data = torch.randn_like(layer.weight)
    assert_close(layer(x), case.dense(x, layer.weight, layer.bias))


def test_a_weight_changed_between_forward_and_backward_is_refused() -> None:
    x, weight, bias = Case().leaves()
    y = Case().ring(x, weight, bias)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# torch.func -----------------------------------------------------------------------------------------


@backends
@every_case
def test_func_grad_is_the_gradient(case: Case, backend: str) -> None:
    def loss(call: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return call(*tensors).pow(3).sum()

    with sre_triton.backend(backend):
        grads = grad(partial(loss, case.ring), argnums=(0, 1, 2))(*case.tensors())
    leaves = case.leaves()
    for got, want in zip(grads, torch.autograd.grad(loss(case.dense, *leaves), leaves), strict=True):
        assert_close(got, want)


# Which of input, weight and bias have a dimension of size 3 to map over, and where.
IN_DIMS = (
    (0, None, None),
    (None, 0, None),
    (None, None, 0),
    (0, 0, None),
    (1, 2, 1),
    (-1, None, -1),
    (0, 0, 0),
    (None, 3, 0),
)


def mapped(case: Case, in_dims: tuple[int | None, ...]) -> list[Tensor]:
    """The case's tensors, those to be mapped over with a dimension of size 3."""
    scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return [
        t if dim is None else torch.stack([s * t + s for s in scale], dim)
        for t, dim in zip(case.tensors(), in_dims, strict=True)
    ]


def looped(call: Callable[..., Any], in_dims: tuple[int | None, ...], tensors: list[Tensor]) -> list[Any]:
    slices = [[t] * 3 if dim is None else list(t.unbind(dim)) for t, dim in zip(tensors, in_dims, strict=True)]
    return [call(*args) for args in zip(*slices, strict=True)]


@backends
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_is_a_loop(in_dims: tuple[int | None, ...], backend: str) -> None:
    for case in CASES:
        tensors = mapped(case, in_dims)
        with sre_triton.backend(backend):
            y = vmap(case.ring, in_dims=in_dims)(*tensors)
        assert_close(y, torch.stack(looped(case.dense, in_dims, tensors)))


@backends
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_of_gradients_is_a_loop(in_dims: tuple[int | None, ...], backend: str) -> None:
    for case in CASES:
        tensors = mapped(case, in_dims)

        def gradients(call: Callable[..., Tensor], *args: Tensor) -> tuple[Tensor, ...]:
            return grad(lambda *a: call(*a).pow(3).sum(), argnums=(0, 1, 2))(*args)

        with sre_triton.backend(backend):
            grads = vmap(partial(gradients, case.ring), in_dims=in_dims)(*tensors)
        expected = zip(*looped(partial(gradients, case.dense), in_dims, tensors), strict=True)
        for got, want in zip(grads, expected, strict=True):
            assert_close(got, torch.stack(want))


@backends
def test_gradients_through_vmap(backend: str) -> None:
    for case in CASES:
        tensors = [t.requires_grad_() for t in mapped(case, (0, 0, None))]
        with sre_triton.backend(backend):
            y = vmap(case.ring, in_dims=(0, 0, None))(*tensors)
            grads = torch.autograd.grad(y.pow(3).sum(), tensors)
        expected = torch.stack(looped(case.dense, (0, 0, None), tensors))
        for got, want in zip(grads, torch.autograd.grad(expected.pow(3).sum(), tensors), strict=True):
            assert_close(got, want)


@backends
@every_case
def test_vmap_over_unbatched_input_is_the_batched_call(case: Case, backend: str) -> None:
    x, weight, bias = case.tensors()
    with sre_triton.backend(backend):
        assert_close(vmap(case.ring, in_dims=(0, None, None))(x, weight, bias), case.dense(x, weight, bias))


@backends
def test_nested_vmap(backend: str) -> None:
    for case in CASES[:8]:
        x, weight, bias = case.tensors()
        weights = torch.stack([weight, -weight, 2 * weight])
        with sre_triton.backend(backend):
            over_weights = vmap(case.ring, in_dims=(None, 0, None))
            y = vmap(over_weights, in_dims=(0, None, None), out_dims=1)(x, weights, bias)
        assert_close(y, torch.stack([case.dense(x, w, bias) for w in weights]))


@backends
@pytest.mark.parametrize("case", TINY_CASES, ids=str)
def test_jacrev_is_the_jacobian(case: Case, backend: str) -> None:
    with sre_triton.backend(backend):
        jacobians = jacrev(case.ring, argnums=(0, 1, 2))(*case.tensors())
    for got, want in zip(jacobians, torch.autograd.functional.jacobian(case.dense, case.tensors()), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("case", [TINY_CASES[0], TINY_CASES[3], TINY_CASES[7]], ids=str)
def test_jacrev_of_jacrev_is_the_hessian(case: Case) -> None:
    x, weight, bias = case.tensors()

    def loss(call: Callable[..., Tensor], w: Tensor) -> Tensor:
        return call(x, w, bias).pow(3).sum()

    ours = jacrev(jacrev(partial(loss, case.ring)))(weight)
    assert_close(ours, torch.autograd.functional.hessian(partial(loss, case.dense), weight))


@pytest.mark.parametrize("case", [c for c in CASES if c.batch > 1], ids=str)
def test_per_sample_gradients_equal_a_loop(case: Case) -> None:
    layer = case.layer(dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    x = case.tensors()[0]

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, (sample,)).pow(2).sum()

    mapped_grads = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        loss(parameters, sample).backward()
        for name, parameter in parameters.items():
            assert_close(mapped_grads[name][i], parameter.grad)


# Forward mode is refused, and never drops a tangent ----------------------------------------------------

REFUSAL = pytest.raises((NotImplementedError, RuntimeError), match="jvp")


@pytest.mark.parametrize("which", [0, 1, 2], ids=["input", "weight", "bias"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_forward_mode_is_refused(which: int, transposed: bool, grad_mode: bool) -> None:
    case = Case(transposed=transposed)
    tensors = list(case.tensors())

    def of_one(t: Tensor) -> Tensor:
        return case.ring(*tensors[:which], t, *tensors[which + 1 :])

    with torch.set_grad_enabled(grad_mode):
        with REFUSAL:
            jvp(of_one, (tensors[which],), (tensors[which],))
        with REFUSAL:
            jacfwd(of_one)(tensors[which])
        with REFUSAL, forward_ad.dual_level():
            of_one(forward_ad.make_dual(tensors[which], tensors[which]))


def test_forward_mode_is_refused_over_reverse_mode_and_for_kernels() -> None:
    case = TINY_CASES[3]
    x, weight, bias = case.tensors()
    with REFUSAL:
        hessian(lambda w: case.ring(x, w, bias).square().sum())(weight)
    with REFUSAL:
        jvp(lambda w: sre_triton.expand_kernel(w, (3, 3)), (weight,), (weight,))


def test_a_call_without_tangents_runs_at_a_dual_level() -> None:
    x, weight, bias = Case().tensors()
    with forward_ad.dual_level():
        y = Case().ring(x, weight, bias)
        assert forward_ad.unpack_dual(y).tangent is None
    assert torch.equal(y, Case().ring(x, weight, bias))


# Autograd's other modes --------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(use_reentrant: bool, backend: str) -> None:
    net = nn.Sequential(sre_triton.SREConv2d(4, 6, 5, padding=2), nn.ReLU(), sre_triton.SREConvTranspose2d(6, 4, 3))
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    leaves = [x, *net.parameters()]
    with sre_triton.backend(backend):
        expected = torch.autograd.grad(net(x).square().sum(), leaves)
        checkpoint(net, x, use_reentrant=use_reentrant).square().sum().backward()
    for leaf, want in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, want)


@every_case
def test_modes_without_gradients(case: Case) -> None:
    layer = case.layer()
    x = torch.randn(case.input_shape)
    expected = layer(x)
    assert expected.requires_grad
    with torch.no_grad():
        y = layer(x)
        assert not y.requires_grad
        assert not y.is_inference()
        assert torch.equal(y, expected)
    with torch.inference_mode():
        y = layer(x)
        assert y.is_inference()
        assert torch.equal(y, expected)


def test_inference_tensors_cannot_be_trained_on_and_say_so() -> None:
    with torch.inference_mode():
        x = torch.randn(1, 4, 8, 8)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        sre_triton.SREConv2d(4, 4, 3)(x)


def test_a_graph_is_kept_when_asked_and_freed_otherwise() -> None:
    x, weight, bias = Case().leaves()
    loss = Case().ring(x, weight, bias).sum()
    first = torch.autograd.grad(loss, weight, retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, weight)[0], first[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, weight)
