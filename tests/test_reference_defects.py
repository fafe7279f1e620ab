"""Defects that were seen in SRE_Conv 1.0.2 and GMR_Conv 1.0.3 by running them: none may exist here."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from tests.reference import gmr_conv_package, sre_conv_package

SRE = [f"SREConv{n}d" for n in (1, 2, 3)]
TRANSPOSED = [f"SREConvTranspose{n}d" for n in (1, 2, 3)]
GMR = [f"GMRConv{n}d" for n in (1, 2, 3)]
COMPAT = ["SRE_Conv1d", "SRE_Conv2d", "SRE_Conv3d", "SRE_ConvTranspose2d", "GMR_Conv1d", "GMR_Conv2d", "GMR_Conv3d"]
ALL = [*SRE, *TRANSPOSED, *GMR, *COMPAT]


def make(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    return getattr(sre_triton, name)(*args, **kwargs)


def image(name: str, channels: int = 4, size: int = 9) -> Tensor:
    return torch.randn(2, channels, *[size] * int(name[-2]))


# 1. Importing needs packages that installing does not bring ---------------------------------------------


def test_imports_with_nothing_but_its_dependencies() -> None:
    program = """
import sys
absent = ["triton", "scipy", "skimage", "torchvision", "torchio", "matplotlib", "lightning"]
sys.modules.update(dict.fromkeys(absent))
import torch, sre_triton
sre_triton.SREConv2d(8, 16, 5)(torch.ones(1, 8, 32, 32)).sum().backward()
sre_triton.GMR_Conv3d(2, 2, 3)(torch.ones(1, 2, 4, 4, 4))
assert sre_triton.equivariance_error(sre_triton.SREConv2d(1, 1, 3), torch.randn(1, 1, 5, 5)) < 1e-5
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# 2. A hidden kernel cache in eval mode ------------------------------------------------------------------


def step(layer: nn.Module, x: Tensor) -> None:
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


def average(layer: nn.Module, x: Tensor) -> None:
    for parameter in layer.parameters():
        parameter.data.lerp_(torch.ones_like(parameter), 0.5)


def load(layer: nn.Module, x: Tensor) -> None:
    layer.load_state_dict({key: torch.ones_like(value) for key, value in layer.state_dict().items()})


@pytest.mark.parametrize("change", [step, average, load])
@pytest.mark.parametrize("name", ALL)
def test_eval_mode_sees_every_change_of_the_weights(name: str, change: Callable[[nn.Module, Tensor], None]) -> None:
    layer, x = make(name, 4, 4, 5).eval(), image(name)
    before = layer(x)
    change(layer, x)
    after = layer(x)
    assert not torch.allclose(after, before)
    fresh = make(name, 4, 4, 5)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), after)


@pytest.mark.parametrize("name", ALL)
def test_backward_twice_in_eval_mode(name: str) -> None:
    layer, x = make(name, 4, 4, 5).eval(), image(name)
    gradients = []
    for _ in range(2):
        layer.zero_grad()
        layer(x).sum().backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ALL)
def test_deepcopy_and_conversion_after_eval(name: str) -> None:
    layer, x = make(name, 4, 4, 5).eval(), image(name)
    layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    nn.init.zeros_(twin.weight)
    assert layer.weight.abs().max() > 0
    half = layer.to(torch.float16)
    assert half(x.half()).dtype == torch.float16


@pytest.mark.parametrize("name", ALL)
def test_a_layer_holds_its_parameters_and_nothing_else(name: str) -> None:
    layer, x = make(name, 4, 4, 5), image(name)
    for mode in (True, False):
        state = set(vars(layer))
        layer.train(mode)(x).sum().backward()
        assert set(vars(layer)) == state
        held = [key for key, value in vars(layer).items() if isinstance(value, Tensor)]
        assert held == []
        assert not layer._buffers


# 3. Layers that cannot be constructed, and transposed=True that is not transposed -------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_layer_can_be_constructed_and_run(name: str) -> None:
    layer, x = make(name, 4, 6, 3), image(name)
    grown = 11 if "Transpose" in name else 7
    assert layer(x).shape == (2, 6, *[grown] * int(name[-2]))


@pytest.mark.parametrize("name", [name for name in COMPAT if "Transpose" not in name])
def test_transposed_is_refused_rather_than_ignored(name: str) -> None:
    with pytest.raises(ValueError, match=rf"transposed=True .* use sre_triton\.SREConvTranspose{name[-2:]}"):
        make(name, 4, 6, 3, transposed=True)


# 4. Even kernels are off by half a pixel, others take the height for every side ---------------------------


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("name", ALL)
def test_even_kernels_are_refused(name: str, k: int) -> None:
    with pytest.raises(ValueError, match=rf"kernel_size must be odd .*use {k - 1} or {k + 1}"):
        make(name, 3, 4, k)


@pytest.mark.parametrize("name", [name for name in ALL if name[-2] != "1"])
def test_kernels_that_are_not_cubic_are_refused(name: str) -> None:
    size = (3, 7) if name[-2] == "2" else (3, 3, 7)
    with pytest.raises(ValueError, match=r"kernel_size must be the same in every dimension .*use \(7, 7"):
        make(name, 3, 4, size)


# 5. The 3-D stem "3x7x7" is a ball of 3x3x3 ---------------------------------------------------------------


def test_the_3d_stem_is_refused_for_what_it_is_not() -> None:
    reference_stem = sre_conv_package().SRE_Conv3d(3, 4, (3, 7, 7), padding=(1, 3, 3), bias=False)
    with pytest.raises(ValueError, match="kernel_size must be the same in every dimension"):
        make("SREConv3d", 3, 4, (3, 7, 7), padding=(1, 3, 3))
    assert int(reference_stem.weight_index_mat.sum()) == 19
    # What it computed all the time is at hand under its own name.
    honest = make("SREConv3d", 3, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        honest.weight.copy_(reference_stem.weight)
    x = torch.randn(1, 3, 8, 8, 8)
    torch.testing.assert_close(honest(x), reference_stem(x), rtol=0, atol=1e-5)


# 6. dtype in the constructor crashes forward --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_dtype_in_the_constructor(name: str, dtype: torch.dtype) -> None:
    layer = make(name, 4, 6, 3, dtype=dtype)
    y = layer(image(name).to(dtype))
    y.sum().backward()
    assert y.dtype == dtype
    assert {p.grad.dtype for p in layer.parameters()} == {dtype}


# 8. Strides that meet an even input break the symmetry without a word -------------------------------------


@pytest.mark.parametrize("name", ["SREConv2d", "GMRConv2d", "SRE_Conv2d", "SREConv3d"])
def test_a_strided_layer_is_exact_where_its_grid_is_symmetric_and_measured_where_not(name: str) -> None:
    layer = make(name, 4, 4, 3, stride=2, padding=1, dtype=torch.float64)
    sre_triton.assert_equivariant(layer, image(name, size=5).double())
    even = image(name, size=4).double()
    assert sre_triton.equivariance_error(layer, even) > 0.5
    with pytest.raises(AssertionError, match="not equivariant: relative error"):
        sre_triton.assert_equivariant(layer, even)


# 9. Arguments vanish in **kwargs, sre_k is ignored in 3-D -------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_unknown_arguments_are_refused(name: str) -> None:
    layer = getattr(sre_triton, name)
    kinds = {p.kind for p in inspect.signature(layer).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_ring'"):
        layer(3, 4, 5, num_ring=3)


@pytest.mark.parametrize("name", ["SREConv3d", "SREConvTranspose3d", "GMRConv3d", "SRE_Conv3d", "GMR_Conv3d"])
def test_number_of_rings_counts_in_3d(name: str) -> None:
    layer = make(name, 3, 4, 5, **{"sre_k" if name == "SRE_Conv3d" else "num_rings": 2})
    assert layer.weight.shape[2] == layer.num_rings == 2


# 10. GMR --------------------------------------------------------------------------------------------------

GMR_LAYERS = [name for name in ALL if name.startswith("GMR")]


@pytest.mark.parametrize("name", GMR_LAYERS)
@pytest.mark.parametrize("arguments", [{"groups": 2}, {"kernel_size": 1}, {"stride": 2}], ids=str)
def test_gmr_runs_grouped_and_with_a_single_tap(name: str, arguments: dict[str, Any]) -> None:
    layer = make(name, **{"in_channels": 4, "out_channels": 6, "kernel_size": 5, **arguments})
    x = image(name)
    y = layer(x)
    assert y.isfinite().all()
    torch.testing.assert_close(layer(x[0]), y[0], rtol=0, atol=1e-6)  # unbatched


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", GMR_LAYERS)
def test_gmr_honours_the_padding_mode(name: str, mode: str) -> None:
    x = image(name)
    padded, zeros = make(name, 4, 4, 3, padding=1, padding_mode=mode), make(name, 4, 4, 3, padding=1)
    zeros.load_state_dict(padded.state_dict())
    expected = nn.functional.pad(x, [1] * 2 * int(name[-2]), mode=mode)
    zeros.padding = 0
    torch.testing.assert_close(padded(x), zeros(expected), rtol=0, atol=1e-6)
    zeros.padding = 1
    assert not torch.allclose(padded(x), zeros(x))


@pytest.mark.parametrize("name", ["GMR_Conv2d", "GMR_Conv3d"])
def test_gmr_s_speed_switches_do_not_change_the_result(name: str) -> None:
    layers = [make(name, 4, 4, 5, dw_fwd=on, inference_accelerate=on) for on in (True, False)]
    nn.init.constant_(layers[0].log_sigmas, 5.0)  # beyond the clamp, which dw_fwd=False lifted by mistake
    layers[1].load_state_dict(layers[0].state_dict())
    x = image(name)
    assert torch.equal(layers[0].eval()(x), layers[1].eval()(x))


@pytest.mark.parametrize("option", ["train_index_mat", "gaussian_mixture_ring"])
def test_gmr_refuses_what_would_not_be_a_gmr_layer(option: str) -> None:
    value = option == "train_index_mat"
    with pytest.raises(ValueError, match=f"{option}={value} is not supported"):
        make("GMR_Conv2d", 4, 4, 5, **{option: value})


def test_gmr_checkpoint_with_a_trained_map_is_refused() -> None:
    state = gmr_conv_package().GMR_Conv2d(3, 4, 7, train_index_mat=True).state_dict()
    state["weight_index_mat"] = state["weight_index_mat"] + 0.1 * torch.rand(1, 1, 4, 49)
    with pytest.raises(RuntimeError, match='"weight_index_mat" is not the one-hot map'):
        make("GMRConv2d", 3, 4, 7).load_state_dict(state)
