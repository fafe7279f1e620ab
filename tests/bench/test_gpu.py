"""What of the GPU benchmark can be tested without one: its registry, its arithmetic, its report."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_checks
from sre_triton.backends import dense
from sre_triton.cache import gpu_file_name
from sre_triton.geometry.conv import conv_spec
from sre_triton.planning import gpu_tables


def test_table_covers_every_kernel_size_and_stage_once() -> None:
    cases = gpu.cases()
    assert len(set(cases)) == len(cases) == len(gpu.KERNEL_SIZES) * len(gpu.STAGES)
    assert {c.kernel_size for c in cases} == {3, 5, 7, 9, 11}
    assert {c.channels for c in cases} == {64, 128, 256, 512}


def test_telling_rows_come_first() -> None:
    first = gpu.cases()[:20]
    wanted = set(itertools.product((3, 5, 7, 9, 11), (64, 128, 256, 512)))
    assert {(c.kernel_size, c.channels) for c in first} == wanted


def test_checks_reach_every_dtype_and_kernel() -> None:
    checks = gpu_checks.checks()
    assert {c.dtype for c in checks} == {torch.float32, torch.float16, torch.bfloat16}
    assert {len(c.size) for c in checks} == {1, 2, 3}
    assert any(c.groups > 2 for c in checks)
    assert any(c.groups == 2 for c in checks)
    assert any(c.antialias for c in checks)
    assert any(c.stride > 1 for c in checks)


def test_floor_is_the_larger_of_traffic_and_product() -> None:
    case = gpu.Case(9, 64, 56)
    traffic = case.floor("forward", 1e9, 1e30)
    assert traffic == pytest.approx(2 * 2 * case.batch * 56 * 56 * 64 / 1e9)
    assert case.floor("forward", 1e30, 1e9) == pytest.approx(2 * case.batch * 56 * 56 * 64 * 64 * 5 / 1e9)
    assert case.floor("step", 1e9, 1e30) == pytest.approx(3 * traffic)


def test_gmr_composition_is_a_ring_convolution() -> None:
    spec = conv_spec(2, 5, 3, True, False, (1, 1), (2, 2), (1, 1), 1)
    x, weight = torch.randn(2, 3, 6, 7), torch.randn(4, 3, 3)
    torch.testing.assert_close(gpu.gmr_forward(x, weight, spec), dense.forward(x, weight, None, spec))


def test_difference_finds_unwritten_and_wrong_elements() -> None:
    truth = torch.randn(100, dtype=torch.float64)
    assert gpu_checks.difference(truth.bfloat16(), truth) is None
    assert "not written" in (gpu_checks.difference(truth.half().fill_(float("nan")), truth) or "")
    assert "relative error" in (gpu_checks.difference(truth.float() * 1.001, truth) or "")


def test_poison_and_guard() -> None:
    failures: list[str] = []
    with gpu_checks.guard(failures, "case"), gpu_checks.poisoned_memory():
        assert torch.empty(3).isnan().all()
        raise RuntimeError("first line\nsecond")
    assert failures == ["case: RuntimeError: first line"]
    assert torch.zeros(1).new_empty(0).numel() == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.count("\n") == 1
    assert gpu.main(["--list"]) == 0


EXTRAS = (
    "scipy",
    "skimage",
    "matplotlib",
    "rich",
    "hypothesis",
    "expecttest",
    "pytest_benchmark",
    "psutil",
    "SRE_Conv",
)


def test_it_needs_torch_triton_numpy_and_pytest_alone() -> None:
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS}))\n"  # importing any of them raises
        "from bench import gpu\n"
        "import sre_triton.backends.triton\n"
        "assert gpu.main(['--list']) == 0\n"
        "import torch\n"
        "sys.exit(0 if torch.cuda.is_available() else gpu.main([]) - 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_the_planner_reads_what_it_writes(tmp_path: Path) -> None:
    """The rows that `measure` makes are a table of measured speeds."""
    names = ("kernel_size", "channels", "size", "batch", "pass", "ms", "dense_ms", "speedup_vs_dense")
    times = dict.fromkeys(gpu.PASSES, 1.0) | {"step": 3.0}
    rows = [dict(zip(names, (9, 64, 56, 167, name, ms, 4 * ms, 4.0), strict=True)) for name, ms in times.items()]
    (tmp_path / gpu_file_name("A GPU")).write_text(json.dumps({"gpu": "A GPU", "rows": rows}))
    table = gpu_tables.load("A GPU", tmp_path)
    assert table is not None
    assert {row.pass_name: row.speedup for row in table.rows} == dict.fromkeys(
        ("forward", "grad_x", "grad_w", "backward"), 4.0
    )


def test_the_clock_runs_out() -> None:
    assert gpu_checks.Clock(-1).left() < 0
    assert 59 < gpu_checks.Clock(60).left() <= 60


def test_summary_hides_the_speed_of_wrong_results() -> None:
    row = dict.fromkeys(("kernel_size", "channels", "size"), 3)
    row |= {"pass": "forward", "ms": 1.0, "dense_ms": 2.0, "speedup_vs_dense": None, "fraction_of_floor": 0.5}
    checks = {"checked": 1, "failures": ["bad"]}
    warps8 = {"checked": 0, "failures": []}
    result = {"gpu": "G", "driver": "1", "torch": "2", "triton": "3", "checks": checks, "warps8": warps8}
    result |= {"sanitizer": "no errors", "models": [], "rows": [row], "complete": False}
    text = gpu.summary(result)
    assert "WRONG: bad" in text
    assert " wrong " in text
    assert "stopped" in text
