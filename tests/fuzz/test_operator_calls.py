"""Wrong calls of every operator: each is refused with an error that names the argument, and none ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sre_triton
from tests.fuzz.operator_calls import OPERATORS, check

pytestmark = pytest.mark.filterwarnings("ignore")
BATCH, BATCHES = 250, 2  # 500 wrong calls of each operator


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_sample_of_wrong_calls_is_refused(operator: str) -> None:
    for seed in range(15):
        check(operator, seed)


@pytest.mark.fuzz
@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("operator", OPERATORS)
def test_five_hundred_wrong_calls_are_refused(operator: str, batch: int, seed: int) -> None:
    first = 1000 + BATCH * (BATCHES * seed + batch)
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # other tests set it
    folders = (str(Path(sre_triton.__file__).parent.parent), str(Path(__file__).parents[2]))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz.operator_calls", operator, str(first), str(BATCH)],
        env={**inherited, "PYTHONPATH": os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    last = "".join(result.stdout.splitlines(keepends=True)[-1:])
    assert result.returncode == 0, f"status {result.returncode}, last call {last}{result.stderr[-4000:]}"
    assert last.startswith(f"{operator} {first + BATCH - 1}:"), last
