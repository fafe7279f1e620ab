"""What only a GPU can show: device guards, streams, graphs, the absence of synchronisation, and the automatic plan.

Skipped where there is none, as the skip says; results themselves are tested in the interpreter, and on a GPU by the
same tests and by ``python -m bench.gpu``. On a GPU: ``pytest tests/backends/triton/test_cuda.py -n 6``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import sre_triton
from sre_triton.backends import dense, expansion
from sre_triton.backends.triton import devices, launch, tiles
from sre_triton.geometry.rings import ring_geometry
from tests.backends.triton.cases import Layer, assert_accurate, dense_backward, dense_forward

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
SECOND = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

BF16 = torch.bfloat16
LAYERS = [
    Layer(kernel_size=9, size=(28, 28), c_in=64, c_out=64, dtype=BF16),
    Layer(kernel_size=7, size=(14, 14), c_in=256, c_out=256, dtype=BF16),  # two kernels
    Layer(kernel_size=5, size=(20, 21), c_in=32, c_out=32, stride=2, dtype=BF16),
    Layer(kernel_size=5, size=(20, 21), c_in=64, c_out=64, groups=64, dtype=BF16),
    Layer(kernel_size=3, size=(6, 7, 8), c_in=16, c_out=24, dtype=torch.float16),
    Layer(kernel_size=3, size=(20, 21), c_in=20, c_out=12, channels_last=False),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def passes(layer: Layer, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Every pass of one layer, as functions of nothing."""
    (x, weight, bias, grad_y), spec = layer.tensors(device), layer.spec
    padding = spec.output_padding(x.shape[2:], grad_y.shape[2:])
    kernel = expansion.expand(weight, spec.geometry)
    return {
        "forward": lambda: launch.forward(x, weight, bias, spec),
        "epilogue": lambda: launch.fused_forward(x, weight, bias, spec, activation="relu", residual=grad_y),
        "grad_x": lambda: launch.transpose(grad_y, weight, None, spec, padding),
        "grad_w": lambda: launch.weight_grad(x, grad_y, spec),
        "backward": lambda: launch.backward(grad_y, x, weight, spec),
        "expand": lambda: launch.expand(weight, spec.geometry, BF16),
        "collapse": lambda: launch.collapse(kernel, spec.geometry, torch.float32),
    }


def flat(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(s, t) for s, t in zip(flat(a), flat(b), strict=True))


@contextmanager
def deterministic(mode: bool) -> Iterator[None]:
    """Deterministic algorithms or not, without a warning instead; both switches are put back."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@pytest.fixture(autouse=True)
def as_users_have_it() -> Iterator[None]:
    """The other tests run with deterministic algorithms, which leave out the library's products: the forward in two
    kernels and the backward that shares its ring sums."""
    with deterministic(False):
        yield


def kernels_of(call: Callable[[], Any]) -> str:
    """Names of the kernels that the device runs in a call, one a line."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return "\n".join(event.name for event in profile.events() if event.device_type == cuda)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_layer
def test_no_pass_waits_for_the_device(layer: Layer, device: torch.device) -> None:
    for call in passes(layer, device).values():
        call()  # compiles, and copies tables
        with no_synchronisation():
            call()


@every_layer
def test_graphs_replay_every_pass(layer: Layer, device: torch.device) -> None:
    for name, call in passes(layer, device).items():
        expected = call()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        for tensor in flat(captured):
            tensor.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert same(captured, expected), name


@every_layer
def test_deterministic_algorithms_give_the_same_bits(layer: Layer, device: torch.device) -> None:
    with deterministic(True):
        for name, call in passes(layer, device).items():
            first = call()
            assert all(same(first, call()) for _ in range(5)), name


def test_the_switches_of_deterministic_algorithms_are_put_back() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_wide_layers_take_two_kernels_forward(device: torch.device) -> None:
    (x, weight, bias, _), spec = LAYERS[1].tensors(device), LAYERS[1].spec
    assert_accurate(launch.forward(x, weight, bias, spec), *dense_forward(LAYERS[1], x, weight, bias))
    names = kernels_of(lambda: launch.forward(x, weight, bias, spec))
    assert "ring_sum_kernel" in names
    assert "ring_conv_fwd_kernel" not in names
    with deterministic(True):
        names = kernels_of(lambda: launch.forward(x, weight, bias, spec))
    assert "ring_conv_fwd_kernel" in names
    assert "ring_sum_kernel" not in names


@pytest.mark.parametrize("layer", LAYERS[:2], ids=str)
def test_both_gradients_share_their_ring_sums(layer: Layer, device: torch.device) -> None:
    (x, weight, _, grad_y), spec = layer.tensors(device), layer.spec
    results = launch.backward(grad_y, x, weight, spec)
    for result, expected in zip(results, dense_backward(layer, grad_y, x, weight), strict=True):
        assert_accurate(result, *expected)
    names = kernels_of(lambda: launch.backward(grad_y, x, weight, spec))
    assert "ring_sum_kernel" in names
    assert "ring_conv_fwd_kernel" not in names, "the gradient in x is a product with the same ring sums"
    with deterministic(True):
        assert "ring_conv_fwd_kernel" in kernels_of(lambda: launch.backward(grad_y, x, weight, spec))


@every_layer
def test_results_do_not_depend_on_the_stream(layer: Layer, device: torch.device) -> None:
    for name, call in passes(layer, device).items():
        expected, stream = call(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = call()
        torch.cuda.current_stream().wait_stream(stream)
        assert same(result, expected), name


@SECOND
@every_layer
def test_tensors_on_the_second_gpu(layer: Layer) -> None:
    first, second = (passes(layer, torch.device("cuda", index)) for index in (0, 1))
    with torch.cuda.device(0):
        for name, call in second.items():
            result = call()
            assert all(tensor.device.index == 1 for tensor in flat(result))
            assert all(
                torch.allclose(a.cpu().float(), b.cpu().float(), rtol=1e-2, atol=1e-2)
                for a, b in zip(flat(result), flat(first[name]()), strict=True)
            ), name
        assert torch.cuda.current_device() == 0


def test_the_backward_pass_keeps_no_ring_sums(device: torch.device) -> None:
    """Memory beyond the results: a chunk of ring sums in half of the L2 cache, and small workspaces."""
    layer = Layer(kernel_size=9, size=(128, 128), batch=16, c_in=64, c_out=64, dtype=BF16)
    x, weight, _, grad_y = layer.tensors(device)
    launch.backward(grad_y, x, weight, layer.spec)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = launch.backward(grad_y, x, weight, layer.spec)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= sum(t.nbytes for t in results) + devices.device_limits(x.device).l2_bytes + 2**26


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize("kernel_size", [3, 9])
def test_the_automatic_plan_runs_and_is_right(kernel_size: int, dtype: torch.dtype, device: torch.device) -> None:
    layer = sre_triton.SREConv2d(64, 64, kernel_size, padding=kernel_size // 2, device=device, dtype=dtype)
    x = torch.randn(8, 64, 56, 56, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    assert "forward: " in sre_triton.explain(layer, x)
    with sre_triton.backend("dense"):
        expected = layer(x.float()) if dtype == torch.float32 else layer(x)
    torch.testing.assert_close(layer(x).float(), expected.float(), rtol=5e-2, atol=5e-2)


def test_what_triton_refuses_goes_dense(device: torch.device) -> None:
    layer = sre_triton.SREConv2d(64, 64, 9, device=device, dtype=torch.float64)
    x = torch.randn(2, 64, 20, 20, device=device, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert "dense (not with Triton: " in sre_triton.explain(layer, x)


@pytest.mark.parametrize("target", [torch.float32, torch.float16, BF16])
def test_the_dense_path_expands_in_one_launch(target: torch.dtype, device: torch.device) -> None:
    geometry = ring_geometry((9, 9))
    weight = torch.randn(64, 64, geometry.num_rings, device=device)
    expected = dense.expand(weight.cpu(), geometry, target)
    assert torch.equal(dense.expand(weight, geometry, target).cpu(), expected)
    kernel = torch.randn(64, 64, 9, 9, device=device)
    torch.testing.assert_close(
        dense.collapse(kernel, geometry).cpu(), dense.collapse(kernel.cpu(), geometry), rtol=1e-5, atol=1e-4
    )


def test_tuning_finds_options_that_are_used(
    device: torch.device, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path))
    listed = tiles.candidates
    monkeypatch.setattr(tiles, "candidates", lambda problem: listed(problem)[:4])
    layer = sre_triton.SREConv2d(64, 64, 5, padding=2, device=device, dtype=BF16)
    x = torch.randn(8, 64, 28, 28, device=device, dtype=BF16).to(memory_format=torch.channels_last)
    (found,) = sre_triton.tune(layer, x, backward=False)
    assert found.milliseconds <= found.rule_milliseconds
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    assert sre_triton.tune(layer, x[:5], backward=False) == []
