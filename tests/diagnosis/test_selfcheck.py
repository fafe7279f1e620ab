"""The self-check: what it runs here, and that no fault passes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sre_triton
from sre_triton import cli
from sre_triton.backends import native, ringwise
from sre_triton.backends.registry import BACKENDS
from sre_triton.diagnosis import selfcheck as module
from sre_triton.diagnosis.machine import describe_machine


class Faulty:
    """The ring-wise backend, wrong in one pass."""

    def __init__(self, name: str, wrong: Any) -> None:
        self._name, self._wrong = name, wrong

    def __getattr__(self, name: str) -> Any:
        return self._wrong if name == self._name else getattr(ringwise, name)


def faulty(name: str, change: Any) -> Faulty:
    right = getattr(ringwise, name)
    return Faulty(name, lambda *args: change(right(*args)))


def last_row_unwritten(y: Tensor) -> Tensor:
    y[..., -1] = float("nan")
    return y


def slightly_off(y: Tensor) -> Tensor:
    return y * 1.02


def in_bfloat16(y: Tensor) -> Tensor:
    return y.bfloat16().to(y.dtype)


def raising(*args: Any) -> Tensor:
    raise RuntimeError("an illegal memory access was encountered")


FAULTS = {
    "forward, a row that is not written": (faulty("forward", last_row_unwritten), "forward of", None),
    "forward, 2% off": (faulty("forward", slightly_off), "forward of", None),
    "forward, precision lost": (faulty("forward", in_bfloat16), "forward of", torch.float32),
    "transpose, 2% off": (faulty("transpose", slightly_off), "transposed=True", None),
    "backward, grad of weight off": (
        faulty("backward", lambda both: (both[0], slightly_off(both[1]))), "grad of weight of", None,
    ),
    "an exception": (Faulty("forward", raising), "an illegal memory access", None),
}  # fmt: skip


@pytest.fixture
def compiled_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but Triton, whose interpreter takes minutes for these layers where other tests have switched it on."""
    monkeypatch.delitem(BACKENDS, "triton")


@pytest.fixture
def one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DTYPES", (torch.float32,))


def test_what_this_machine_has_is_checked_and_right(compiled_backends: None) -> None:
    found = sre_triton.selfcheck("cpu")
    assert found.is_ok, str(found)
    assert len(found.rows) == len(BACKENDS) * len(module.DTYPES)
    rows = {(row.backend, row.dtype): row for row in found.rows}
    for name in ("dense", "ringwise", *(["native"] if native.missing() is None else [])):
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            row = rows[name, dtype]
            assert row.not_run is None
            assert row.checked == len(module._LAYERS) * len(module.RESULTS)
            assert 0 < row.worst < 1
    sizes = {len(layer.size) for layer in module._LAYERS}
    assert sizes == {2, 3}
    assert "0 wrong" in str(found)


@pytest.mark.parametrize(("backend", "words", "dtype"), FAULTS.values(), ids=FAULTS)
def test_no_fault_passes(
    backend: Faulty,
    words: str,
    dtype: torch.dtype | None,
    one_dtype: None,
    compiled_backends: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKENDS, "ringwise", backend)
    # A plan keeps the backend that it found first.
    from sre_triton.planning import plan

    plan._planned.cache_clear()
    try:
        found = sre_triton.selfcheck("cpu")
    finally:
        plan._planned.cache_clear()
    assert not found.is_ok
    guilty = {row.backend for row in found.rows if row.faults}
    assert guilty == {"ringwise"}
    assert any(words in text for row in found.rows for text in row.faults), str(found)
    assert "FAULT: cpu ringwise float32: " in str(found)


def test_the_command_fails_on_a_fault_and_prints_the_versions(
    one_dtype: None,
    compiled_backends: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["selfcheck", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in printed
    row = module.Row("cpu", "native", "float32", checked=1, faults=["forward of kernel_size=3"])
    monkeypatch.setattr(sre_triton, "selfcheck", lambda device: module.SelfCheck({}, [row]))
    assert cli.main(["selfcheck"]) == 1
    assert "FAULT: cpu native float32: forward of kernel_size=3" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_no_fault_of_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["selfcheck", "--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err


def test_precision_switches_are_put_back() -> None:
    switch: Any = torch.backends.cudnn.conv
    before, switch.fp32_precision = switch.fp32_precision, "tf32"
    try:
        with module._full_float32():
            assert switch.fp32_precision == "ieee"
        assert switch.fp32_precision == "tf32"
    finally:
        switch.fp32_precision = before


def test_the_machine_is_described_without_triton() -> None:
    found = describe_machine()
    assert {"sre_triton", "torch", "triton", "numpy", "python", "processor", "native kernel"} <= set(found)
    assert all(found.values())


@pytest.mark.slow
def test_the_interpreter_runs_all_but_bfloat16() -> None:
    """A process of its own: kernels are bound to the interpreter when they are first imported."""
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(sre_triton.__file__).parent.parent)}
    command = [sys.executable, "-m", "sre_triton", "selfcheck", "--device", "cpu"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    lines = {tuple(line.split()[1:3]): line for line in done.stdout.splitlines() if line.startswith("cpu ")}
    assert done.returncode == 0, done.stdout
    for dtype in ("float32", "float16"):
        assert lines["triton", dtype].endswith("ok")
    assert "interpreter computes bfloat16 incorrectly" in lines["triton", "bfloat16"]
