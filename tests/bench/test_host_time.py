"""The figures of bench.host_time: their verdicts here, the measurement itself with ``-m slow``."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from bench import host_time, pretended_gpu


def test_a_missed_bound_is_named_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    rows = [host_time.Row("met", 40.0, 40.0), host_time.Row("missed", 40.1, 40.0)]
    monkeypatch.setattr(pretended_gpu, "activate", lambda mode: None)
    for count, code in ((1, 0), (2, 1)):
        monkeypatch.setattr(host_time, "measure", lambda calls, count=count: rows[:count])
        assert host_time.main(["--calls", "1"]) == code
    first, *others = capsys.readouterr().out.splitlines()
    assert "MISSED" not in first
    assert [line.split()[0] for line in others if line.endswith("MISSED")] == ["missed"]


def test_operations_that_start_a_kernel_are_counted_and_views_are_not() -> None:
    x = torch.zeros(4, 6)
    with host_time._Operations() as operations:
        torch.empty_strided((2, 3), (3, 1))
        x.as_strided((2, 3), (6, 1)).permute(1, 0).flatten()
        torch.mm(x, x.t())
        x.new_zeros(3)
    assert [name.removeprefix("aten::") for name in operations.names] == ["clone", "mm", "new_zeros"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_it_measures_and_counts_launches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.host_time", "--calls", "5"], capture_output=True, text=True, timeout=600
    )
    assert done.stdout.count(" at most ") == 5, done.stderr
    assert "3 of ours, 1 of PyTorch's" in done.stdout
