"""The shared fixtures do what the other tests rely on."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import conftest

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
def test_parameters_are_drawn_alike_in_every_test(repetition: int, generator: torch.Generator, seed: int) -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3, generator=generator), expected)
    assert random.random() == random.Random(seed).random()
    assert np.random.random() == np.random.RandomState(seed).random_sample()


DRAWS = """
import random, sys
import numpy as np
import torch
from hypothesis import given, strategies as st

def test_of_the_three_generators():
    print("drawn", torch.rand(1).item(), random.random(), np.random.random(), file=sys.stderr)

@given(st.integers(), st.floats())
def test_of_hypothesis(number, real):
    print("drawn", number, real, file=sys.stderr)
"""


@pytest.mark.slow  # four processes that import PyTorch
def test_a_run_is_reproduced_by_the_seed_in_its_header(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(conftest.__file__).read_text())
    (tmp_path / "test_draws.py").write_text(DRAWS)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "test_draws.py"]
    runs = [
        subprocess.Popen([*command, *options], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for options in ([], [], ["--seed", "7"], ["--seed", "7"])
    ]
    shown = [run.communicate(timeout=300) for run in runs]
    assert not any(run.returncode for run in runs), shown
    seeds = [line.split()[1] for output, _ in shown for line in output.splitlines() if line.startswith("seed: ")]
    assert seeds == ["0", "0", "7", "7"]
    default, again, other, repeated = ([t for t in text.splitlines() if t.startswith("drawn")] for _, text in shown)
    assert len(default) == 26
    assert default == again
    assert other == repeated
    assert other[0] != default[0]
    assert other[1:] != default[1:]
