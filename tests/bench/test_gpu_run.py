"""Whole runs of `python -m bench.gpu --quick` on the pretended GPU, with and without faults in the launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench import pretended_gpu
from bench.gpu import cases

ROOT = Path(__file__).parents[2]
ALL = {(case, which) for case in cases.quick().cases for which in cases.PASSES}


class Run(NamedTuple):
    code: int
    seconds: float
    output: str
    report: dict[str, Any]

    def failures(self, section: str) -> str:
        return "\n".join(self.report[section]["failures"])

    def passes(self, *, fast: bool) -> set[tuple[cases.Case, str]]:
        """Those with a row; with a speed-up if ``fast``."""
        rows = self.report["rows"] + self.report["rows_3d"]
        keys = {(case.kernel_size, case.channels, case.size, which): (case, which) for case, which in ALL}
        return {
            keys[row["kernel_size"], row["channels"], row["size"], row["pass"]]
            for row in rows
            if not fast or (row["speedup_vs_dense"] and row["speedup_vs_cached"])
        }


def command(out: Path, minutes: float, limit: float) -> list[str]:
    options = {"--out": out, "--minutes": minutes, "--limit": limit, "--workers": 1}
    return [sys.executable, "-m", "bench.gpu", "--quick", *(str(part) for pair in options.items() for part in pair)]


def read(out: Path) -> dict[str, Any]:
    (path,) = out.glob("*.json")
    assert path.name == "quick-gpu-Pretended-H100.json"
    return json.loads(path.read_text())


def dry_run(out: Path, *faults: str, minutes: float = 5, limit: float = 60) -> Run:
    environment = os.environ | pretended_gpu.environment("dense", faults)
    start = time.monotonic()
    done = subprocess.run(
        command(out, minutes, limit),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 * minutes + 60,
    )
    seconds = time.monotonic() - start
    assert seconds < 60 * minutes + 30, "the command ends when it promised"
    assert not done.stderr, done.stderr
    (log,) = out.glob("*.log")
    assert log.read_text() == done.stdout
    assert not list(out.glob("*.part"))
    return Run(done.returncode, seconds, done.stdout, read(out))


def check_faulty(run: Run, guilty: set[tuple[int, str]]) -> None:
    """Innocent rows are all there; the guilty, by kernel size and pass, are named and bear no speed-up."""
    bad = {(case, which) for case, which in ALL if (case.kernel_size, which) in guilty}
    assert bad
    assert run.passes(fast=True) == ALL - bad
    for case, which in bad:
        assert f"{case} {which}: " in run.failures("table")
        assert f"{case} {which}: " in run.output
    assert len(run.report["table"]["failures"]) == len(bad)
    assert run.report["table"]["checked"] == len(ALL - bad)
    assert run.code == 1


def test_a_whole_run_without_a_fault(tmp_path: Path) -> None:
    run = dry_run(tmp_path)
    report = run.report
    assert run.code == 0, run.output
    assert run.passes(fast=True) == ALL
    assert report["complete"]
    assert report["ended"] == "complete"
    assert all(report[section]["failures"] == [] for section in ("checks", "warps8", "compile", "table", "networks"))
    assert report["checks"]["checked"] > 3 * 4
    assert report["warps8"]["checked"] > 0
    assert len(report["models"]) == 9
    assert all(row["ms"] > 0 and row["correct"] for row in report["models"])
    assert {row["backend"] for row in report["models"]} == {"dense", "triton", "auto"}
    assert {row["mode"] for row in report["models"]} == {"eager", "graph", "compiled"}
    phases = ("machine", "checks", "ceilings", "table", "networks", "compile", "compiled networks", "sanitizer")
    assert set(report["seconds"]) == set(phases)
    assert sum(report["seconds"].values()) <= run.seconds + 1
    assert [row["kernel_size"] for row in report["rows"]] == [9] * 8 + [5] * 8 + [3] * 8 + [7] * 4
    with_gmr = [row for row in report["rows"] if row["gmr_ms"]]
    assert len(with_gmr) == 4
    assert run.output.splitlines()[-2].split()[:4] == ["9", "16", "12", "forward"]


def test_faults_take_only_their_own_along(tmp_path: Path) -> None:
    """One of each kind, in the process of the table and in the workers."""
    in_workers = ("die@forward:9@worker", "sticky@transpose:5@worker")
    faults = ("die@transpose:9@table", "sticky@weight_grad:5@table", "hang@weight_grad:7@table")
    wrong = ("zeros@forward:3@table", "unwritten@backward:7@table")
    run = dry_run(tmp_path, *in_workers, *faults, *wrong, limit=24)
    in_table = {(9, "grad_x"), (5, "grad_w"), (7, "grad_w"), (3, "forward"), (3, "step"), (7, "step")}
    check_faulty(run, {(9, "forward"), (9, "step"), (5, "grad_x")} | in_table)
    table = run.failures("table")
    assert "grad_x: the process died, exit code 11" in table
    assert "grad_w: left behind: CUDA error" in table or "grad_w: RuntimeError: CUDA error" in table
    assert "grad_w: no answer in 12 s" in table
    assert "forward: forward: relative error 1.0e+00" in table
    assert "elements were not written" in table
    assert "forward: not timed, forward faulted in a worker: the process died, exit code 11" in table
    checks = run.failures("checks")
    assert "check of kernel_size=9" in checks
    assert "check of kernel_size=5" in checks
    assert "check of kernel_size=3" not in checks
    models = {(row["mode"], row["backend"]): row["correct"] for row in run.report["models"]}
    assert all(models[mode, "dense"] for mode in ("eager", "graph", "compiled"))
    assert not any(models[mode, "triton"] for mode in ("eager", "graph", "compiled"))
    assert "eager triton: " in run.failures("networks")


@pytest.mark.slow
def test_faults_of_workers_take_only_their_jobs_along(tmp_path: Path) -> None:
    run = dry_run(tmp_path, "die@forward:9@worker", "sticky@transpose:5@worker", "hang@backward:7@worker", limit=24)
    check_faulty(run, {(9, "forward"), (9, "step"), (5, "grad_x"), (7, "step")})
    assert "faulted in a worker: no answer in 24 s" in run.failures("table")
    checks = run.failures("checks")
    assert "check of kernel_size=9" in checks
    assert "check of kernel_size=5" in checks
    assert "check of kernel_size=3" not in checks
    assert run.report["networks"]["failures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "die", "sticky", "raise", "zeros", "unwritten"])
@pytest.mark.parametrize(
    ("launcher", "passes"),
    [
        ("forward", ("forward", "step")),
        ("transpose", ("grad_x",)),
        ("weight_grad", ("grad_w",)),
        ("backward", ("step",)),
    ],
)
def test_every_fault_of_every_launcher_in_the_table(
    kind: str, launcher: str, passes: tuple[str, ...], tmp_path: Path
) -> None:
    run = dry_run(tmp_path, f"{kind}@{launcher}:9@table", limit=24)
    check_faulty(run, {(9, which) for which in passes})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "die", "sticky"])
@pytest.mark.parametrize("launcher", ["forward", "transpose", "weight_grad", "backward"])
def test_every_fault_of_every_launcher_in_a_worker(kind: str, launcher: str, tmp_path: Path) -> None:
    run = dry_run(tmp_path, f"{kind}@{launcher}:9@worker", limit=24)
    passes = {"forward": ("forward", "step"), "transpose": ("grad_x",), "weight_grad": ("grad_w",)}
    check_faulty(run, {(9, which) for which in passes.get(launcher, ("step",))})
    assert "check of kernel_size=9" in run.failures("checks")


@pytest.mark.parametrize("process", [pytest.param("table", marks=pytest.mark.slow), "worker"])
def test_a_run_in_which_everything_hangs_ends_in_its_time(process: str, tmp_path: Path) -> None:
    run = dry_run(tmp_path, f"hang@forward@{process}", f"hang@backward@{process}", minutes=0.4, limit=600)
    assert run.code == 1
    assert "no answer in" in run.output or "not finished in time" in run.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_everything_saved(number: int, tmp_path: Path) -> None:
    environment = os.environ | pretended_gpu.environment("dense", ["hang@forward@worker"])
    process = subprocess.Popen(
        command(tmp_path, 10, 600), env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if list(tmp_path.glob("quick-gpu-Pretended-H100.json")):
            break
        time.sleep(0.1)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert f"stopped by {signal.Signals(number).name}" in output
    assert output.splitlines()[-1] == f"written to {tmp_path / 'quick-gpu-Pretended-H100.json'}"
    assert read(tmp_path)["ended"] == f"stopped by {signal.Signals(number).name}"


def test_the_watchdog_ends_a_run_that_waits_for_ever(tmp_path: Path) -> None:
    """Here the process that supervises hangs itself."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bench.gpu import cases, run\n"
        "from bench.gpu.record import Clock\n"
        "run._GRACE = 0.5\n"
        "run._Day.work = lambda day: time.sleep(600)\n"
        "run.run(cases.quick(), Path(sys.argv[1]), Clock(0.5), 1, 60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "stopped by the watchdog" in done.stdout
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["ended"] == "stopped by the watchdog"
