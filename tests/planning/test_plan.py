"""The planner: requests are honoured or refused, plans depend on shapes and dtype alone, and can be read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import sre_triton
from sre_triton.backends import native
from sre_triton.planning import plan
from sre_triton.planning.plan import recording
from sre_triton.planning.request import current_backend
from tests.oracle import BACKENDS, CASES, Case

every_case = pytest.mark.parametrize("case", CASES, ids=str)
# Refused on every device, and with or without Triton's interpreter.
NO_KERNELS = "backend 'triton' was requested but cannot run this call: .*(float64|cannot be imported|needs a CUDA)"


def planned(call: Any, *args: Any) -> list[tuple[str, str]]:
    """(kind, path) of every operator call."""
    with recording() as records:
        call(*args)
    return [(planned_call.kind, chosen.backend) for planned_call, chosen in records]


# Requests -------------------------------------------------------------------------------------------


def test_automatic_is_the_default_outside_and_inside() -> None:
    assert current_backend() == "auto"
    with sre_triton.backend("auto"):
        assert current_backend() == "auto"


def test_contexts_nest_and_restore() -> None:
    with sre_triton.backend("dense"):
        assert current_backend() == "dense"
        with sre_triton.backend("ringwise"):
            assert current_backend() == "ringwise"
            with sre_triton.backend("auto"):
                assert current_backend() == "auto"
            assert current_backend() == "ringwise"
        assert current_backend() == "dense"
    assert current_backend() == "auto"


def test_a_context_is_left_on_an_exception() -> None:
    with pytest.raises(KeyError), sre_triton.backend("dense"), sre_triton.backend("ringwise"):
        raise KeyError
    assert current_backend() == "auto"


def test_a_context_can_be_entered_again_and_within_itself() -> None:
    dense = sre_triton.backend("dense")
    for _ in range(2):
        with dense, sre_triton.backend("ringwise"), dense:
            assert current_backend() == "dense"
        assert current_backend() == "auto"


@pytest.mark.parametrize("name", ["cuda", "Dense", "", None, 1])
def test_an_unknown_name_is_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(ValueError, match="one of 'auto', 'dense', 'ringwise', 'native', 'triton', got") as error:
        sre_triton.backend(name)
    assert repr(name) in str(error.value)
    assert current_backend() == "auto"


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_an_explicit_request_is_met(case: Case, backend: str) -> None:
    forward = "transpose" if case.transposed else "forward"
    with sre_triton.backend(backend):
        assert planned(case.ring, *case.tensors()) == [(forward, backend)]


@every_case
def test_a_request_that_cannot_be_met_says_why(case: Case) -> None:
    layer = case.layer().double()
    x = torch.randn(case.input_shape, dtype=torch.float64)
    with sre_triton.backend("triton"):
        for call in (lambda: layer(x), lambda: sre_triton.explain(layer, x)):
            with pytest.raises(RuntimeError, match=NO_KERNELS):
                call()
        with torch.no_grad(), pytest.raises(RuntimeError, match=NO_KERNELS):
            layer(x)
    assert layer(x).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_a_backward_pass_takes_the_path_requested_at_its_forward(case: Case, backend: str) -> None:
    leaves = case.leaves()
    with sre_triton.backend(backend):
        y = case.ring(*leaves)
    other = next(name for name in BACKENDS if name != backend)
    with recording() as records, sre_triton.backend(other):
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        sum(g.square().sum() for g in grads).backward()
    assert len(records) > 3
    assert {chosen.backend for _, chosen in records} == {backend}
    assert {chosen.reason for _, chosen in records} == {"requested"}


# Plans ----------------------------------------------------------------------------------------------

WIDE = Case(in_channels=32, out_channels=32, size=(24, 24), kernel_size=5, padding=2)
THIN = replace(WIDE, in_channels=3)


def test_the_automatic_plan_uses_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests of it are tests of one path."""
    assert {path for _, path in planned(WIDE.ring, *WIDE.tensors(torch.float32))} == {BACKENDS[-1]}
    monkeypatch.setattr(native, "missing", lambda: "not in this test")
    chosen = {path for case in (WIDE, THIN) for _, path in planned(case.ring, *case.tensors(torch.float32))}
    assert chosen == {"dense", "ringwise"}


@pytest.mark.parametrize("case", [WIDE, THIN, *CASES], ids=str)
def test_a_plan_looks_at_shapes_and_dtype_alone(case: Case) -> None:
    def plans(leaves: tuple[torch.Tensor, ...]) -> list[Any]:
        with recording() as records:
            case.ring(*leaves).sum().backward()
        return list(records)

    first = plans(case.leaves(torch.float32))
    other_values = tuple((t.detach() * 0).requires_grad_() for t in case.leaves(torch.float32))
    assert plans(other_values) == first
    if case.ndim > 1:
        assert plans(case.leaves(torch.float32, channels_last=True)) == first
    plan._planned.cache_clear()
    assert plans(case.leaves(torch.float32)) == first
    for call, chosen in first:
        assert call.dtype == torch.float32
        assert call.device == torch.device("cpu")
        assert plan.plan_call(call, "auto") == chosen
        assert chosen.backend in BACKENDS
        assert chosen.reason


def test_the_plan_names_the_convolution_whichever_pass_it_is() -> None:
    """The passes of one convolution are told apart by their kind alone."""
    case = Case(in_channels=4, out_channels=6, stride=2, groups=2)
    with recording() as records:
        x, weight, bias = case.leaves()
        grads = torch.autograd.grad(case.ring(x, weight, bias).square().sum(), (x, weight), create_graph=True)
        sum(g.sum() for g in grads).backward()
    calls = {call._replace(kind="any") for call, _ in records}
    assert {call.kind for call, _ in records} == {"forward", "transpose", "weight_grad", "backward"}
    assert len(calls) == 1
    (call,) = calls
    assert (call.batch, call.in_channels, call.out_channels, call.input_size) == (2, 4, 6, (7, 6))


def test_recording_ends_with_its_context() -> None:
    case = Case()
    with recording() as records:
        case.ring(*case.tensors())
    case.ring(*case.tensors())
    assert len(records) == 1
    with pytest.raises(KeyError), recording():
        raise KeyError
    case.ring(*case.tensors())


# explain() ------------------------------------------------------------------------------------------


def test_explaining_a_layer() -> None:
    layer = sre_triton.SREConv2d(32, 32, 5, padding=2)
    x = torch.randn(2, 32, 24, 24)
    text = sre_triton.explain(layer, x)
    assert str(layer) in text
    assert "(2, 32, 24, 24)" in text
    assert "torch.float32" in text
    assert "cpu" in text
    with recording() as records:
        layer(x.requires_grad_()).sum().backward()  # both gradients at once
    for (_, chosen), name in zip(records, ("forward", "backward"), strict=True):
        assert f"{name}: {chosen.backend} ({chosen.reason})" in text


def test_explaining_a_transposed_layer_tells_its_three_passes() -> None:
    layer = sre_triton.SREConvTranspose2d(16, 4, 3)
    text = sre_triton.explain(layer, torch.randn(1, 16, 8, 8))
    title, shape, *passes = text.splitlines()
    assert title == str(layer)
    assert "(1, 4, 10, 10)" in shape
    assert [line.split(":")[0].strip() for line in passes] == ["forward", "grad of input", "grad of weight"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_explaining_a_request(backend: str) -> None:
    with sre_triton.backend(backend):
        text = sre_triton.explain(sre_triton.SREConv2d(4, 4, 3), torch.randn(1, 4, 8, 8))
    assert f"forward: {backend} (requested)" in text
    assert f"backward: {backend} (requested)" in text


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = sre_triton.SREConv2d(3, 16, 5, padding=2)
        self.body = nn.ModuleList([sre_triton.GMRConv2d(16, 16, 3, padding=1), nn.ReLU()])
        self.unused = sre_triton.SREConv2d(16, 16, 7)
        self.shared = sre_triton.SREConv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        x = self.stem(x)
        for module in self.body:
            x = module(x)
        return scale * self.shared(self.shared(x))


def test_explaining_a_network_names_the_layers_that_ran_in_order() -> None:
    net = Net()
    x = torch.randn(1, 3, 24, 24)
    text = sre_triton.explain(net, x)
    titles = [line for line in text.splitlines() if not line.startswith(" ")]
    assert titles == [
        f"stem: {net.stem}",
        f"body.0: {net.body[0]}",
        f"shared: {net.shared}",
        f"shared: {net.shared}",
    ]
    assert f"forward: {'dense' if native.missing() else 'native'} (predicted" in text


def test_explaining_leaves_no_trace() -> None:
    net = Net()
    for module in net.modules():
        assert not module._forward_pre_hooks
    sre_triton.explain(net, torch.randn(1, 3, 24, 24))
    with pytest.raises(RuntimeError):
        sre_triton.explain(net, torch.randn(1, 4, 24, 24))
    for module in net.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert all(p.grad is None for p in net.parameters())


def test_explaining_functions_and_nothing() -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sre_triton.sre_conv2d(x, torch.ones(4, 4, 2), kernel_size=3)

    text = sre_triton.explain(Functional(), torch.randn(1, 4, 8, 8))
    assert text.startswith("ring convolution 0\n")
    assert sre_triton.explain(nn.Conv2d(4, 4, 3), torch.randn(1, 4, 8, 8)) == "no ring convolution ran"
