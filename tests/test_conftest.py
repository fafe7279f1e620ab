"""The shared fixtures do what the other tests rely on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

ALLOCATIONS: dict[str, Callable[[], Tensor]] = {
    "empty": lambda: torch.empty(64),
    "empty of bfloat16": lambda: torch.empty(64, dtype=torch.bfloat16),
    "new_empty": lambda: torch.ones(1).new_empty(64),
    "empty_like in channels_last": lambda: torch.empty_like(
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    ),
    "empty_strided": lambda: torch.empty_strided((8, 8), (8, 1)),
    "resize_": lambda: torch.zeros(2).resize_(64)[2:],
    "C++ constructor": lambda: torch.Tensor(64),
    "C++ to_empty": lambda: nn.Linear(8, 8, device="meta").to_empty(device="cpu").weight,
}


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS.keys())
def test_uninitialised_memory_is_nan(allocate: Callable[[], Tensor]) -> None:
    # Twice: memory that the allocator hands out again must be poisoned again.
    for _ in range(2):
        fresh = allocate()
        assert fresh.isnan().all()
        fresh.detach().zero_()


def test_an_operation_that_forgets_an_element_shows_nan() -> None:
    sums = torch.empty(3)
    sums[:2] = 1.0
    assert not torch.isfinite(sums * 2).all()


@pytest.mark.parametrize("repetition", range(2))
def test_parameters_are_drawn_alike_in_every_test(repetition: int, generator: torch.Generator) -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3, generator=generator), expected)
