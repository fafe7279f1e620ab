"""What FlopCounterMode counts, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sre_triton
from sre_triton.backends.base import Call
from sre_triton.geometry.conv import conv_spec
from sre_triton.operators.flops import count
from tests.oracle import BACKENDS
from tests.test_fresh_process import run

RINGWISE = [backend for backend in BACKENDS if backend != "dense"]


def counted(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as mode:
        call()
    return mode.get_total_flops()


def forward_and_both(layer: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Of a forward pass, and of the backward pass alone."""
    forward = counted(lambda: layer(x))
    return forward, counted(lambda: layer(x).sum().backward()) - forward


# The two rings of 3x3 taps take four additions: up + down, that + middle, left + right of these, and up + down again.
# Every ring is a multiply-add per pair of channels. At stride 2 the first two are made for every column.
@pytest.mark.parametrize("backend", RINGWISE)
@pytest.mark.parametrize(
    ("options", "size", "forward", "backward"),
    [
        ({"padding": 1}, 8, 64 * 4 * (4 + 2 * 2 * 6), 64 * 6 * (4 + 2 * 2 * 2 * 4)),
        ({"padding": 1, "groups": 2}, 8, 64 * 4 * (4 + 2 * 2 * 3), 64 * 6 * (4 + 2 * 2 * 2 * 2)),
        (
            {"padding": 1, "stride": 2},
            9,
            25 * 4 * (2 * 2 + 2 + 2 * 2 * 6),
            81 * 6 * (4 + 2 * 2 * 4) + 25 * 4 * (2 * 2 + 2 + 2 * 2 * 6),
        ),
    ],
)
def test_ring_sums_and_products_are_counted(
    backend: str, options: dict[str, Any], size: int, forward: int, backward: int
) -> None:
    layer, x = sre_triton.SREConv2d(4, 6, 3, **options), torch.randn(1, 4, size, size, requires_grad=True)
    with sre_triton.backend(backend):
        assert forward_and_both(layer, x) == (forward, backward)


@pytest.mark.parametrize("backend", RINGWISE)
def test_a_weight_gradient_alone_is_counted(backend: str) -> None:
    layer, x = sre_triton.SREConv2d(4, 6, 3, padding=1), torch.randn(1, 4, 8, 8)
    with sre_triton.backend(backend):
        assert forward_and_both(layer, x) == (2 * (64 * 4 * (4 + 2 * 2 * 6),))


def test_nine_by_nine_rings_share_their_sums() -> None:
    layer, x = sre_triton.SREConv2d(8, 8, 9, padding=4).requires_grad_(False), torch.randn(2, 8, 16, 16)
    with sre_triton.backend("ringwise"):
        assert counted(lambda: layer(x)) == 2 * 256 * 8 * (28 + 2 * 5 * 8)


@pytest.mark.parametrize(
    ("ring", "plain"),
    [(sre_triton.SREConv2d, nn.Conv2d), (sre_triton.SREConvTranspose2d, nn.ConvTranspose2d)],
)
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}])
def test_the_dense_backend_counts_what_pytorch_counts(
    ring: type[nn.Module], plain: type[nn.Module], options: dict[str, int]
) -> None:
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    with sre_triton.backend("dense"):
        forward, backward = forward_and_both(ring(4, 6, 5, **options), x)
    assert backward == 2 * forward
    theirs = forward_and_both(plain(4, 6, 5, **options), x)
    assert forward == theirs[0]
    if "groups" not in options:  # whose weight gradients PyTorch 2.13 counts as if there were none
        assert backward == theirs[1]


def test_the_automatic_backend_counts_what_it_takes() -> None:
    image = torch.randn(1, 64, 32, 32)
    wide, single = sre_triton.SREConv2d(64, 64, 9, padding=4), sre_triton.SREConv2d(64, 64, 1)
    assert counted(lambda: wide(image)) < counted(lambda: single(image)) * 9
    with sre_triton.backend("dense"):
        assert counted(lambda: wide(image)) == counted(lambda: single(image)) * 81


def test_an_activation_in_the_same_pass_is_not_counted() -> None:
    layer, x = sre_triton.SREConv2d(4, 6, 3).requires_grad_(False), torch.randn(1, 4, 8, 8)
    conv = counted(lambda: layer(x))
    act = counted(lambda: sre_triton.sre_conv_act(x, layer.weight, layer.bias, kernel_size=3))
    assert act == conv > 0


def test_expanding_copies_and_collapsing_adds() -> None:
    weight = torch.randn(4, 3, 2, requires_grad=True)
    kernel = sre_triton.expand_kernel(weight, (3, 3))
    assert counted(lambda: sre_triton.expand_kernel(weight, (3, 3))) == 0
    assert counted(lambda: kernel.sum().backward()) == 4 * 3 * 9
    shares = (sre_triton.ring_geometry((3, 3), antialias=True).weights != 0).sum()
    assert counted(lambda: sre_triton.expand_kernel(weight, (3, 3), antialias=True)) == 2 * 4 * 3 * shares


@pytest.mark.parametrize("antialias", [False, True])
def test_shares_are_multiplied(antialias: bool) -> None:
    """Rings of 3x3 with shares: besides additions, at least one product for each of the shares of an outer ring."""
    spec = conv_spec(2, 3, 2, True, antialias, (1, 1), (1, 1), (1, 1), 1)
    call = Call("forward", spec, 1, 1, 1, (8, 8), torch.float32, torch.device("cpu"))
    assert (count(call, "ringwise") > 64 * (4 + 2 * 2)) == antialias


def test_without_channels_there_is_nothing_to_count() -> None:
    layer, x = sre_triton.SREConv2d(4, 0, 3), torch.randn(1, 4, 8, 8)
    with sre_triton.backend("ringwise"):
        assert counted(lambda: layer(x)) == 0


def test_triton_is_counted_without_a_gpu() -> None:
    spec = conv_spec(2, 3, 2, True, False, (1, 1), (1, 1), (1, 1), 1)
    call = Call("backward", spec, 1, 64, 64, (8, 8), torch.bfloat16, torch.device("cpu"))
    assert count(call, "triton") == 64 * 64 * (4 + 2 * 2 * 2 * 64)  # both gradients share ring sums
    single = call._replace(dtype=torch.float32)
    assert count(single, "triton") == 2 * 64 * 64 * (4 + 2 * 2 * 64)


def test_nothing_need_be_computed() -> None:
    layer = sre_triton.SREConv2d(4, 6, 3, padding=1, device="meta")
    x = torch.empty(1, 4, 8, 8, device="meta", requires_grad=True)
    with sre_triton.backend("ringwise"):
        assert forward_and_both(layer, x) == (64 * 4 * (4 + 2 * 2 * 6), 64 * 6 * (4 + 2 * 2 * 2 * 4))


def test_formulas_wait_for_the_counter_to_be_imported() -> None:
    """Which imports Triton; and they do not come too late."""
    run("""
        import sys
        import torch
        import sre_triton
        assert "torch.utils.flop_counter" not in sys.modules
        from torch.utils.flop_counter import FlopCounterMode, flop_registry
        assert {op.__name__ for op in flop_registry if str(op).startswith("sre_triton")} >= {"ring_conv"}
        assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("sre_triton")]
        with FlopCounterMode(display=False) as mode:
            sre_triton.SREConv2d(2, 2, 3)(torch.randn(1, 2, 8, 8))
        assert mode.get_total_flops() > 0
    """)
