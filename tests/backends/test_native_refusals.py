"""The entry of the native kernel: whatever it is called with, it refuses by name before it touches memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sre_triton.backends import native
from sre_triton.backends.native import passes as launch
from sre_triton.geometry.conv import ConvArgs
from sre_triton.geometry.windows import forward_window

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def entry_arguments() -> dict[str, Any]:
    """Of a call of the C++ operator that makes outputs and a weight gradient."""
    spec = ConvArgs((1, 1), (1, 1), (1, 1), 2, 3, True, False, "native").spec(2)
    numbers, factors = launch._as_numbers(forward_window(spec, (5, 6)))
    return {
        "source": torch.randn(2, 4, 5, 6), "numbers": numbers, "factors": factors, "groups": 2, "transposed": False,
        "weight": torch.randn(6, 2, 2), "bias": torch.randn(6), "y": torch.empty(2, 6, 5, 6),
        "thin": torch.randn(2, 6, 5, 6), "grad": torch.empty(6, 2, 2),
        "residual": torch.randn(2, 6, 5, 6), "slope": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("source", lambda t: t[0, 0]),
        ("source", lambda t: t[:, :3]),
        ("y", lambda t: t[:, :5]),
        ("y", lambda t: t[:1]),
        ("y", lambda t: t[:, :, :4]),
        ("y", lambda t: t[..., 0]),
        ("y", lambda t: t.double()),
        ("y", lambda t: t.to("meta")),
        ("y", lambda t: None),
        ("weight", lambda t: t[:4]),
        ("weight", lambda t: t[:, :1]),
        ("weight", lambda t: t[:, :, :1]),
        ("weight", lambda t: t[0]),
        ("bias", lambda t: t[:5]),
        ("bias", lambda t: torch.randn(12)[::2]),
        ("bias", lambda t: t[None]),
        ("thin", lambda t: t[..., :5]),
        ("thin", lambda t: t[:, :5]),
        ("thin", lambda t: None),
        ("residual", lambda t: t[:1]),
        ("residual", lambda t: t.double()),
        ("residual", lambda t: t.to(memory_format=torch.channels_last)),
        ("grad", lambda t: t[:, :, :1].contiguous()),
        ("grad", lambda t: t.expand(6, 2, 2).transpose(0, 1).contiguous().transpose(0, 1)),
        ("grad", lambda t: t.to(torch.bfloat16)),
        ("groups", lambda n: 0),
        ("groups", lambda n: -2),
        ("groups", lambda n: 3),
        ("numbers", lambda t: t[:-1].clone()),
        ("numbers", lambda t: torch.cat([t, t[-1:]])),
        ("numbers", lambda t: t.int()),
        ("numbers", lambda t: t[:, None]),
        ("factors", lambda t: t[:-1].clone()),
        ("factors", lambda t: torch.cat([t, t[-1:]])),
        ("factors", lambda t: t.float()),
    ],
)
def test_the_cpp_operator_refuses_by_name(name: str, change: Callable[[Any], Any]) -> None:
    arguments = entry_arguments()
    operator = launch._operator()
    operator(*arguments.values())
    y, grad = arguments["y"].clone(), arguments["grad"].clone()
    changed = {**arguments, name: change(arguments[name])}
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=name):
        operator(*changed.values())
    assert torch.equal(arguments["y"], y)
    assert torch.equal(arguments["grad"], grad)


def test_no_number_leads_the_cpp_operator_out_of_its_memory(seed: int) -> None:
    """Every number of the window is exchanged for others, one at a time: a refusal, or a call that stays within."""
    random_numbers = np.random.default_rng(seed)
    arguments = entry_arguments()
    operator = launch._operator()
    refusals = 0
    for i in range(len(arguments["numbers"])):
        for value in (-1, 0, 1, 2, 5, 1 << 40, -(1 << 40), int(random_numbers.integers(-20, 20))):
            numbers = arguments["numbers"].clone()
            numbers[i] = value
            try:
                operator(*{**arguments, "numbers": numbers}.values())
            except ValueError:
                refusals += 1
    assert refusals > 2 * len(arguments["numbers"])
