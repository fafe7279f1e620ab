"""What surrounds the kernels: refusals, layouts, expansion, imports."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest
import torch

import sre_triton
from sre_triton.backends import dense, expansion, triton
from sre_triton.backends.base import Call
from sre_triton.backends.memory_format import layout_of
from sre_triton.backends.triton import launch, refusal
from sre_triton.backends.triton.launch import collapse, expand, fused_forward
from sre_triton.geometry.rings import ring_geometry
from tests.backends.triton.cases import Layer


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("kernel_size", [(1,), (5,), (3, 3), (9, 9), (3, 3, 3), (7, 7, 7)], ids=str)
def test_expansion_and_its_adjoint(kernel_size: tuple[int, ...], antialias: bool, device: torch.device) -> None:
    geometry = ring_geometry(kernel_size, antialias=antialias)
    weight = torch.randn(6, 5, geometry.num_rings, device=device)
    kernel = torch.randn(6, 5, *kernel_size, device=device)
    torch.testing.assert_close(expand(weight, geometry).double(), dense.expand(weight.double(), geometry))
    torch.testing.assert_close(
        collapse(kernel, geometry).double(), dense.collapse(kernel.double(), geometry), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("source", [torch.float32, torch.float16])
@pytest.mark.parametrize("target", [torch.float32, torch.float16])
def test_expansion_converts_in_one_pass(source: torch.dtype, target: torch.dtype, device: torch.device) -> None:
    geometry = ring_geometry((5, 5))
    weight = torch.randn(3, 4, 3, device=device).to(source)
    kernel = expand(weight, geometry, target)
    assert torch.equal(kernel, dense.expand(weight.float(), geometry).to(target))
    assert collapse(kernel, geometry, torch.float32).dtype == torch.float32


def names(launched: list[Any]) -> list[str]:
    return [launch.kernel.fn.__name__ for launch in launched]


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_kernels_expand_under_a_request(dtype: torch.dtype | None, device: torch.device, launched: list[Any]) -> None:
    weight = torch.randn(3, 4, 3, device=device, requires_grad=True)
    grad = torch.randn(3, 4, 5, 5, device=device).to(dtype or torch.float32)
    with sre_triton.backend("triton"):
        kernel = sre_triton.expand_kernel(weight, (5, 5), antialias=True, dtype=dtype)
        kernel.backward(grad)
        sre_triton.project_kernel(kernel.detach(), antialias=True)  # in float64: not for these kernels
    assert names(launched) == ["ring_expand_kernel", "ring_collapse_kernel"]
    geometry = ring_geometry((5, 5), antialias=True)
    expected = dense.expand(weight.detach().double(), geometry)
    torch.testing.assert_close(kernel.detach().double(), expected.to(kernel.dtype).double(), rtol=1e-3, atol=1e-6)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.double(), dense.collapse(grad.double(), geometry), rtol=1e-5, atol=1e-5)


def test_the_dense_backend_expands_with_the_kernels_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels(device: str, dtype: torch.dtype) -> Any:
        tensor: Any = types.SimpleNamespace(device=torch.device(device), dtype=dtype)
        return expansion._kernels_for(tensor, torch.bfloat16, False)

    monkeypatch.setattr(launch.triton.knobs.runtime, "interpret", False)
    assert kernels("cuda", torch.float32) is triton
    assert kernels("xpu", torch.float16) is triton
    assert kernels("cuda", torch.float64) is None
    assert kernels("cpu", torch.float32) is None

    def missing() -> Any:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(triton, "_launchers", missing)
    assert kernels("cuda", torch.float32) is None


def test_an_inference_graph_reaches_the_epilogue(device: torch.device, launched: list[Any]) -> None:
    layer = Layer()
    x, weight, bias, residual = layer.tensors(device)

    def call() -> torch.Tensor:
        return sre_triton.sre_conv_act(x, weight, bias, padding=1, kernel_size=3, residual=residual)

    expected = call()
    assert not launched or device.type == "cuda"
    launched.clear()
    with sre_triton.backend("triton"):
        torch.testing.assert_close(call(), expected)
        assert names(launched) == ["ring_conv_fwd_kernel"]
        weight.requires_grad_()
        torch.testing.assert_close(call(), expected)  # separate operations, which have gradients
    assert len(launched) == 2


def test_expansion_of_nothing(device: torch.device) -> None:
    geometry = ring_geometry((3, 3))
    assert expand(torch.empty(0, 4, 2, device=device), geometry).shape == (0, 4, 3, 3)
    assert collapse(torch.empty(4, 0, 3, 3, device=device), geometry).shape == (4, 0, 2)


def test_refusals_say_why(device: torch.device) -> None:
    call = Call("forward", Layer().spec, 1, 8, 8, (32, 32), torch.float32, device)
    assert refusal(call) is None
    assert "float64" in (refusal(call._replace(dtype=torch.float64)) or "")
    assert "meta" in (refusal(call._replace(device=torch.device("meta"))) or "")
    if device.type == "cpu":
        assert "bfloat16" in (refusal(call._replace(dtype=torch.bfloat16)) or "")
    assert "row" in (refusal(call._replace(input_size=(32, 2**29), in_channels=5, out_channels=5)) or "")


def test_epilogue_refusals() -> None:
    layer = Layer()
    x, weight, bias, residual = layer.tensors(torch.device("cpu"))
    with pytest.raises(ValueError, match="gelu"):
        fused_forward(x, weight, bias, layer.spec, activation="gelu")
    with pytest.raises(ValueError, match="residual must be like the output"):
        fused_forward(x, weight, bias, layer.spec, residual=residual.half())


def test_the_layout_follows_the_input() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert layout_of(x) == torch.contiguous_format
    assert layout_of(x.to(memory_format=torch.channels_last)) == torch.channels_last
    assert layout_of(x[0]) == torch.contiguous_format
    assert layout_of(torch.randn(2, 3, 4)) == torch.contiguous_format
    volume = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    assert layout_of(volume) == torch.channels_last_3d
    assert layout_of(torch.randn(2, 1, 4, 5)) == torch.contiguous_format  # both by stride; not so laid out


def test_library_import_leaves_triton_alone() -> None:
    code = "import sre_triton, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
