"""What works with ``nn.Conv2d`` works with a ring convolution: AMP, layouts, copies, training, devices."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sre_triton
from tests.oracle import BACKENDS, CASES, Case
from tests.training_steps import assert_steps_agree, small_net, step

every_case = pytest.mark.parametrize("case", CASES, ids=str)
image_cases = pytest.mark.parametrize("case", [c for c in CASES if c.ndim > 1], ids=str)


# Autocast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tensors", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_case
def test_autocast_gives_the_dtypes_that_it_gives_dense_layers(
    case: Case, tensors: torch.dtype, dtype: torch.dtype
) -> None:
    layer = case.layer(dtype=tensors)
    kind = f"Conv{'Transpose' if case.transposed else ''}{case.ndim}d"
    plain = getattr(nn, kind)(case.in_channels, case.out_channels, 3, groups=case.groups, dtype=tensors)
    x = torch.randn(case.input_shape, dtype=tensors, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y, expected = layer(x), plain(x.repeat_interleave(4, -1).repeat_interleave(4, -2) if case.ndim > 1 else x)
    assert y.dtype == expected.dtype == (torch.float64 if tensors == torch.float64 else dtype)
    y.sum().backward()
    assert {x.grad.dtype, layer.weight.grad.dtype, layer.bias.grad.dtype} == {tensors}


def test_autocast_does_not_mix_dtypes_that_dense_layers_refuse() -> None:
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    for layer in (nn.Conv2d(4, 4, 3), sre_triton.SREConv2d(4, 4, 3)):
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="should be the same"):
            layer(x)


def test_autocast_can_be_switched_off_within() -> None:
    layer = sre_triton.SREConv2d(4, 4, 3)
    x = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert torch.equal(layer(x), layer.float()(x))
        assert layer(x).dtype == torch.float32


# Memory format --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@image_cases
def test_layers_keep_the_memory_format(case: Case, backend: str) -> None:
    layer = case.layer()
    for x in (torch.randn(case.input_shape), case.channels_last(torch.randn(case.input_shape))):
        x.requires_grad_()
        with sre_triton.backend(backend):
            y = layer(x)
            y.backward(torch.ones_like(y, memory_format=torch.contiguous_format))
        is_channels_last = not x.is_contiguous()
        for result in (y, x.grad):
            assert result.stride() == (case.channels_last(result) if is_channels_last else result.contiguous()).stride()


def test_a_network_converts_to_channels_last() -> None:
    net = small_net().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    y = net(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in net.parameters())


# Copies ---------------------------------------------------------------------------------------------


def copies(layer: nn.Module) -> Iterator[nn.Module]:
    yield copy.deepcopy(layer)
    yield pickle.loads(pickle.dumps(layer))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    yield torch.load(buffer, weights_only=False)


@every_case
def test_layers_are_copied_and_pickled_whole(case: Case) -> None:
    layer = case.layer()
    x = torch.randn(case.input_shape)
    expected = step(layer, layer, x)  # and so with whatever a call may leave behind
    for twin in copies(layer):
        assert repr(twin) == repr(layer)
        assert_steps_agree(step(twin, twin, x), expected)
        with torch.no_grad():
            twin.weight.zero_()
        assert layer.weight.abs().sum() > 0


def test_a_state_dict_loads_with_weights_only() -> None:
    net, other = small_net(), small_net()
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(other.eval()(x), net.eval()(x))


# Training machinery ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@every_case
def test_an_empty_batch_trains(case: Case, backend: str) -> None:
    layer = case.layer()
    x = torch.randn(0, *case.input_shape[1:], requires_grad=True)
    with sre_triton.backend(backend):
        y = layer(x)
        y.sum().backward()
    assert y.shape[0] == 0
    assert y.shape[1:] == layer(torch.randn(case.input_shape)).shape[1:]
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_an_optimiser_step_in_eval_mode_takes_effect() -> None:
    net = small_net().eval()
    x = torch.randn(2, 3, 16, 16)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = net(x).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


def test_a_moving_average_in_eval_mode_takes_effect() -> None:
    layer = sre_triton.SREConv2d(4, 4, 3)
    average = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5)).eval()
    x = torch.randn(1, 4, 8, 8)
    average.update_parameters(layer)
    before = average(x)
    with torch.no_grad():
        layer.weight.mul_(3)
        layer.bias.mul_(3)
    average.update_parameters(layer)
    torch.testing.assert_close(average(x), 2 * before)


def test_functional_call_replaces_the_parameters() -> None:
    layer = sre_triton.SREConv2d(4, 6, 3)
    x = torch.randn(2, 4, 8, 8)
    doubled = {name: 2 * p for name, p in layer.named_parameters()}
    torch.testing.assert_close(functional_call(layer, doubled, (x,)), 2 * layer(x))


def test_an_ensemble_of_layers_is_mapped() -> None:
    layers = [sre_triton.SREConv2d(4, 6, 5, padding=2) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(2, 4, 8, 8)
    y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]))


def test_weight_norm() -> None:
    layer = sre_triton.SREConv2d(4, 6, 5)
    x = torch.randn(2, 4, 8, 8)
    expected = layer(x).detach()
    parametrizations.weight_norm(layer)
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    magnitude, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    assert magnitude.grad.abs().sum() > 0
    assert direction.grad.abs().sum() > 0
    with torch.no_grad():
        magnitude.mul_(2)
    bias = layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x) - bias, 2 * (expected - bias))


def test_spectral_norm() -> None:
    layer = parametrizations.spectral_norm(sre_triton.SREConv2d(4, 6, 5), n_power_iterations=1000).eval()
    assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(layer(x), sre_triton.sre_conv2d(x, layer.weight, layer.bias, kernel_size=5))
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0


def test_pruning() -> None:
    layer = sre_triton.SREConv2d(4, 6, 5)
    prune.random_structured(layer, "weight", amount=3, dim=0)
    x = torch.randn(2, 4, 8, 8)
    is_constant = (layer(x) == layer.bias.view(-1, 1, 1)).flatten(2).all(-1)
    assert is_constant.all(0).sum() == 3
    prune.remove(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    assert copy.deepcopy(layer)(x).equal(layer(x))


def test_constants_first_made_in_inference_mode_serve_training() -> None:
    case = Case(ndim=2, kernel_size=13, size=(13, 14), num_rings=5)  # no other test uses this kernel
    for backend in BACKENDS:
        leaves = case.leaves(torch.float32)
        with sre_triton.backend(backend):
            with torch.inference_mode():
                case.ring(*case.tensors(torch.float32))
            y = case.ring(*leaves)
            grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            sum(g.square().sum() for g in grads).backward()
        assert all(leaf.grad is not None for leaf in leaves)


# Devices and dtypes without data ---------------------------------------------------------------------


@every_case
def test_the_meta_device_gives_the_shape_alone(case: Case) -> None:
    layer = case.layer(device="meta")
    x = torch.empty(case.input_shape, device="meta", requires_grad=True)
    y = layer(x)
    assert y.is_meta
    assert y.shape == case.layer()(torch.randn(case.input_shape)).shape
    y.sum().backward()
    assert x.grad.is_meta
    assert x.grad.shape == x.shape
    assert layer.weight.grad.shape == layer.weight.shape
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(case.input_shape)).isfinite().all()


@every_case
def test_layers_train_in_fake_tensor_mode(case: Case) -> None:
    real = case.layer()(torch.randn(case.input_shape))
    with FakeTensorMode():
        layer = case.layer()
        x = torch.randn(case.input_shape, requires_grad=True)
        y = layer(x)
        y.sum().backward()
    assert isinstance(y, FakeTensor)
    assert isinstance(layer.weight.grad, FakeTensor)
    assert (y.shape, y.stride()) == (real.shape, real.stride())
    assert x.grad.shape == x.shape
    # Nothing fake was left in a cache.
    assert case.layer()(torch.randn(case.input_shape)).isfinite().all()


def test_the_default_dtype_is_that_of_new_layers() -> None:
    try:
        torch.set_default_dtype(torch.float64)
        net = small_net()
        y = net(torch.randn(2, 3, 16, 16))
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.float64
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_the_default_device_is_that_of_new_layers() -> None:
    with torch.device("meta"):
        net = small_net()
        assert net(torch.randn(2, 3, 16, 16)).is_meta
        # Layers that stand elsewhere are not drawn to it.
        assert sre_triton.SREConv2d(3, 4, 7, num_rings=2, device="cpu")(torch.randn(2, 3, 8, 8, device="cpu")).is_cpu
    assert all(p.is_meta for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_network_converts_to_any_float_dtype(dtype: torch.dtype) -> None:
    net = small_net().to(dtype)
    y = net(torch.randn(2, 3, 16, 16, dtype=dtype))
    y.sum().backward()
    assert {y.dtype, *(p.dtype for p in net.parameters()), *(p.grad.dtype for p in net.parameters())} == {dtype}
