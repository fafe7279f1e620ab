"""Ring layers are compiled, exported and traced as ``nn.Conv2d`` is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import sre_triton
from sre_triton.planning.plan import recording
from tests.oracle import BACKENDS, CASES, Case
from tests.training_steps import assert_steps_agree, small_net, step

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch.compile --------------------------------------------------------------------------------------


@every_case
def test_a_compiled_layer_trains_as_an_eager_one(case: Case) -> None:
    layer = case.layer()
    x = torch.randn(case.input_shape)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    assert_steps_agree(step(compiled, layer, x), step(layer, layer, x))
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 2  # with and without gradients


def test_inductor_compiles_a_network_for_training() -> None:
    net = nn.Sequential(
        sre_triton.SREConv2d(3, 16, 5, padding=2),
        nn.ReLU(),
        sre_triton.SREConvTranspose2d(16, 4, 3, stride=2, output_padding=1),
    )
    compiled = torch.compile(net, fullgraph=True)
    for x in (torch.randn(2, 3, 16, 12), torch.randn(2, 3, 16, 12).to(memory_format=torch.channels_last)):
        torch._dynamo.reset()
        assert_steps_agree(step(compiled, net, x), step(net, net, x), rtol=1e-4, atol=1e-5)


def test_inductor_compiles_a_network_under_autocast() -> None:
    net = nn.Sequential(sre_triton.SREConv2d(3, 16, 5, padding=2), sre_triton.GMRConv2d(16, 4, 3))
    x = torch.randn(2, 3, 12, 12)

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x)

    compiled = torch.compile(autocast, fullgraph=True)
    ours, eager = step(compiled, net, x), step(autocast, net, x)
    assert ours[0].dtype == torch.bfloat16
    # The operators are the same; what lies between them may be rounded elsewhere: two bfloat16 ulps.
    assert_steps_agree(ours, eager, rtol=2**-6, atol=2**-7)


def test_inductor_agrees_on_the_strides_of_dimensions_of_size_one() -> None:
    net = nn.Sequential(sre_triton.SREConv2d(1, 4, 3), sre_triton.SREConvTranspose2d(4, 4, 3))
    compiled = torch.compile(net, fullgraph=True)
    for x in (torch.randn(2, 1, 3, 3), torch.randn(2, 3, 3, 1).permute(0, 3, 1, 2)):
        torch._dynamo.reset()
        for backend in BACKENDS:
            with sre_triton.backend(backend):
                assert_steps_agree(step(compiled, net, x), step(net, net, x))


# Sizes that are equal to one another, or to channels, would be taken for the same symbol by the compiler.
SIZES = ((5, 3, 18, 22), (7, 3, 20, 34), (11, 3, 26, 30))


@pytest.mark.parametrize(("dynamic", "graphs"), [(True, 1), (None, 2)])
def test_one_graph_serves_all_sizes(dynamic: bool | None, graphs: int) -> None:
    net = small_net()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend=counter)
    for size in SIZES:
        x = torch.randn(size)
        with recording() as records:
            assert_steps_agree(step(compiled, net, x), step(net, net, x), rtol=1e-4, atol=1e-5)
        # Each call is planned for its own numbers, compiled or not.
        half = len(records) // 2
        assert records[:half] == records[half:]
    # Normalisation layers of PyTorch itself add an empty graph.
    assert sum(len(graph.graph.nodes) > 0 for graph in counter.graphs) == graphs


@pytest.mark.parametrize("case", [CASES[2], CASES[6], CASES[9], CASES[11]], ids=str)
def test_functions_compile_with_dynamic_shapes(case: Case) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.ring, fullgraph=True, dynamic=True, backend=counter)
    for batch, *size in ((5, 11, 13, 17), (7, 19, 10, 12), (9, 14, 23, 8)):
        leaves = replace(case, batch=batch, size=tuple(size[: case.ndim])).leaves()
        y, expected = compiled(*leaves), case.ring(*leaves)
        torch.testing.assert_close(y, expected)
        for got, want in zip(
            torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(got, want)
    assert counter.frame_count == 1


def test_kernel_functions_compile() -> None:
    weight = torch.randn(3, 2, 3, requires_grad=True)
    compiled = torch.compile(lambda w: sre_triton.expand_kernel(w, (5, 5)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weight), sre_triton.expand_kernel(weight, (5, 5)))
    (compiled_grad,) = torch.autograd.grad(compiled(weight).square().sum(), weight)
    (eager_grad,) = torch.autograd.grad(sre_triton.expand_kernel(weight, (5, 5)).square().sum(), weight)
    torch.testing.assert_close(compiled_grad, eager_grad)


def paths(call: Callable[[], Any]) -> set[str]:
    with recording() as records:
        call()
    return {plan.backend for _, plan in records}


def test_a_compiled_function_honours_the_backend_around_it() -> None:
    layer = sre_triton.SREConv2d(16, 16, 3, padding=1, dtype=torch.float64)
    x = torch.randn(2, 16, 16, 16, dtype=torch.float64)  # which no Triton kernel takes
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    automatic = paths(lambda: compiled(x))
    for backend in (*BACKENDS, *BACKENDS):
        with sre_triton.backend(backend):
            assert paths(lambda: step(compiled, layer, x)) == {backend}
    assert paths(lambda: compiled(x)) == automatic
    with sre_triton.backend("triton"), pytest.raises(RuntimeError, match="'triton' was requested"):
        compiled(x)


def test_a_compiled_function_honours_the_backend_within_it() -> None:
    layer = sre_triton.SREConv2d(16, 16, 3, padding=1)
    x = torch.randn(2, 16, 16, 16)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(x: Tensor) -> Tensor:
        with sre_triton.backend("dense"):
            y = layer(x)
        with sre_triton.backend("ringwise"):
            return layer(y)

    with recording() as records:
        both(x).sum().backward()
    assert [plan.backend for _, plan in records] == ["dense", "ringwise", "ringwise", "dense"]
    assert sre_triton.planning.request.current_backend() == "auto"


# Export and tracing ---------------------------------------------------------------------------------


def operators_in(graph_module: GraphModule) -> list[str]:
    return [
        node.target.name().partition("::")[2]
        for node in graph_module.graph.nodes
        if node.op == "call_function" and "sre_triton" in str(node.target)
    ]


@every_case
def test_an_exported_layer_is_one_node(case: Case) -> None:
    layer = case.layer().eval()
    x = torch.randn(case.input_shape)
    program = torch.export.export(layer, (x,))
    assert operators_in(program.graph_module) == ["ring_conv_transpose" if case.transposed else "ring_conv"]
    assert torch.equal(program.module()(x), layer(x))


def test_an_exported_network_runs_at_any_size_and_after_saving(tmp_path: Path) -> None:
    net = small_net().eval()
    x = torch.randn(2, 3, 16, 16)
    batch, height, width = (torch.export.Dim(name, min=2, max=256) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: 2 * height, 3: 2 * width},)
    program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2")
    for exported in (program, loaded):
        assert operators_in(exported.graph_module) == ["ring_conv"] * 3 + ["ring_conv_transpose"]
        assert set(exported.state_dict) == set(net.state_dict())
        for size in ((2, 3, 16, 16), (5, 3, 24, 10), (3, 3, 14, 32)):
            x = torch.randn(size)
            torch.testing.assert_close(exported.module()(x), net(x))


def test_an_exported_program_decomposes_around_the_operator() -> None:
    program = torch.export.export(small_net().eval(), (torch.randn(2, 3, 16, 16),)).run_decompositions()
    assert operators_in(program.graph_module) == ["ring_conv"] * 3 + ["ring_conv_transpose"]


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_traces_a_training_step(tracing_mode: str) -> None:
    case = Case(padding=1)
    x, weight, bias = case.tensors()
    loss = grad(lambda *leaves: case.ring(*leaves).square().sum(), argnums=(0, 1, 2))
    traced = make_fx(loss, tracing_mode=tracing_mode)(x, weight, bias)
    assert operators_in(traced)[0] == "ring_conv"
    for got, want in zip(traced(x, weight, bias), loss(x, weight, bias), strict=True):
        torch.testing.assert_close(got, want)
