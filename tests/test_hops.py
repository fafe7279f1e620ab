"""How many functions of the package a call passes through, from the layer to the kernel and back.

Each costs a small layer a noticeable part of its time, and a reader a file to open.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import sre_triton
from sre_triton.backends import native

PACKAGE = str(Path(sre_triton.__file__).parent)
needs_native = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def hops(call: Callable[[], object]) -> list[str]:
    """The package's functions that a call enters, in order, as "file:function"."""
    for _ in range(3):  # what is looked up is known then
        call()
    entered: list[str] = []

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            entered.append(f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_name}")

    outer = sys.getprofile()
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(outer)
    return entered


@needs_native
@pytest.mark.parametrize("requested", ["auto", "native"])
def test_an_inference_call_is_18_functions_deep_at_most(requested: str) -> None:
    layer, x = sre_triton.SREConv2d(8, 8, 3, padding=1), torch.randn(1, 8, 8, 8)
    with torch.no_grad(), sre_triton.backend(requested):
        found = hops(lambda: layer(x))
    assert found[0] == "layers/convolutions.py:forward"
    assert any(hop.startswith("backends/native") for hop in found)
    assert len(found) <= 18, "\n".join(found)


@needs_native
def test_a_training_step_is_32_functions_deep_at_most() -> None:
    layer, x = sre_triton.SREConv2d(8, 8, 3, padding=1), torch.randn(1, 8, 8, 8, requires_grad=True)
    cotangent = torch.ones(1, 8, 8, 8)
    found = hops(lambda: layer(x).backward(cotangent))
    assert "operators/autograd.py:backward" in found
    assert len(found) <= 32, "\n".join(found)


def test_what_is_above_the_backends_is_the_same_for_all_of_them() -> None:
    layer, x = sre_triton.SREConv2d(8, 8, 3, padding=1), torch.randn(1, 8, 8, 8)
    above = []
    for name in ("dense", "ringwise"):
        with torch.no_grad(), sre_triton.backend(name):
            above.append([hop for hop in hops(lambda: layer(x)) if not hop.startswith(("backends/", "geometry/"))])
    assert above[0] == above[1]
    assert len(above[0]) <= 14, "\n".join(above[0])
