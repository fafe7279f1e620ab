"""Rows of the GPU benchmark: how results are judged, and what a row and the summary say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import cases, networks, table, timing, truth
from bench.gpu.record import SECTIONS, Record
from bench.gpu.summary import summary
from sre_triton.backends import dense
from sre_triton.planning import gpu_tables

H100 = (3e12, 700e12)  # bytes and flop per second
CASE = cases.Case(9, 128, 28)


def measured(**changes: Any) -> table.Measured:
    """Of a forward pass that is right, its rival at 500 TFLOP/s, we four times as fast."""
    rival = CASE.dense_flop("forward") / 500e12
    seconds = {"ours": rival / 4, "dense": rival, "cached": rival / 1.25} | changes
    return table.Measured(seconds, [])


def test_difference_finds_unwritten_and_wrong_elements() -> None:
    true = torch.randn(100, dtype=torch.float64)
    assert truth.difference(true.bfloat16(), true) is None
    assert "not written" in (truth.difference(true.half().fill_(float("nan")), true) or "")
    assert "relative error" in (truth.difference(true.float() * 1.001, true) or "")
    assert "relative error" in (truth.difference(torch.zeros(100), true) or "")


def test_difference_finds_one_wrong_element_among_millions() -> None:
    true = torch.randn(2**22, dtype=torch.float64).clamp(-3, 3)
    result = true.bfloat16()
    assert truth.difference(result, true) is None
    result[12345] += 2
    assert "an element is off" in (truth.difference(result, true) or "")


def test_two_rounded_results_may_differ_by_the_error_of_each() -> None:
    true = torch.randn(10000, dtype=torch.float64)
    unit = truth.rounding(true, torch.bfloat16)
    rival = true.bfloat16()
    assert truth.difference(rival, rival, unit=unit, roundings=4) is None
    assert truth.difference((true * (1 + 3 * unit)).bfloat16(), rival, unit=unit, roundings=4) is None
    assert truth.difference((true * (1 + 5 * unit)).bfloat16(), rival, unit=unit, roundings=4) is not None


def test_every_way_to_allocate_is_poisoned() -> None:
    with truth.poisoned_memory():
        fresh = [torch.empty(3), torch.empty_like(torch.zeros(3)), torch.zeros(1).new_empty(3)]
        fresh.append(torch.empty_strided((3,), (1,)))
        assert all(tensor.isnan().all() for tensor in fresh)
        assert torch.empty(3, dtype=torch.int32).numel() == 3
    assert torch.empty.__name__ == "empty", "memory is ordinary again"


def test_switches_of_cudnn_are_put_back() -> None:
    with torch.backends.__allow_nonbracketed_mutation():  # PyTorch's test utilities forbid what the benchmark does
        torch.backends.cudnn.benchmark, before = True, torch.backends.cudnn.benchmark
        try:
            with truth.without_search():
                assert not torch.backends.cudnn.benchmark
            assert torch.backends.cudnn.benchmark
        finally:
            torch.backends.cudnn.benchmark = before


def test_gmr_composition_is_a_ring_convolution() -> None:
    spec = cases.Layer(5).spec
    x, weight = torch.randn(2, 3, 6, 7), torch.randn(4, 3, 3)
    torch.testing.assert_close(table.gmr_forward(x, weight, spec), dense.forward(x, weight, None, spec))


def test_a_row_prints_the_rival_beside_every_ratio() -> None:
    row = table.row(CASE, "forward", measured(), H100, 91500)
    assert row["speedup_vs_dense"] == pytest.approx(4)
    assert row["speedup_vs_cached"] == pytest.approx(3.2)
    assert row["dense_tflops"] == pytest.approx(500)
    assert row["is_telling"]
    assert row["gmr_ms"] is None
    assert row["fraction_of_floor"] == pytest.approx(CASE.floor("forward", *H100) / measured().seconds["ours"])


def test_a_wrong_result_bears_no_speedup() -> None:
    row = table.row(CASE, "forward", measured()._replace(problems=["forward: relative error 1"]), H100, 91500)
    assert row["correct"] is False
    assert row["speedup_vs_dense"] is row["speedup_vs_cached"] is None


@pytest.mark.parametrize(
    ("case", "cudnn", "tflops", "top", "is_telling"),
    [
        (CASE, 91500, 299, H100, False),
        (CASE, 91500, 301, H100, True),
        (CASE, 91500, 150, (2e12, 280e12), True),  # a GPU of which nobody expects 300
        (CASE, 91500, 130, (2e12, 280e12), False),
        (CASE, 91002, 500, H100, True),
        (cases.Case(3, 64, 32, ndim=3), 91002, 500, H100, False),
        (cases.Case(3, 64, 32, ndim=3), 91500, 500, H100, True),
        (CASE, None, 500, None, True),
    ],
)
def test_a_broken_rival_is_marked(
    case: cases.Case, cudnn: int | None, tflops: float, top: tuple[float, float] | None, is_telling: bool
) -> None:
    rival = case.dense_flop("forward") / tflops / 1e12
    row = table.row(case, "forward", measured(dense=rival), top, cudnn)
    assert row["is_telling"] is is_telling
    assert ("says nothing" in row["note"]) is not is_telling


@pytest.mark.parametrize("found", [{"loss": 0.0, "gradient": 1.0}, {"loss": 1.0, "gradient": float("nan")}])
def test_a_network_that_computes_something_else_is_wrong(found: dict[str, float]) -> None:
    right = {"loss": 1.0, "gradient": 1.0}
    assert networks.problem(right, right) is None
    assert networks.problem(right, None) is None
    assert networks.problem(found, right) is not None


def test_the_planner_reads_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path))
    record = Record(tmp_path, is_quick=False)
    record.name({"gpu": "A GPU"})
    for which in cases.PASSES:
        seconds = {"ours": 1e-3, "dense": 4e-3, "cached": 4e-3}
        factor = 3 if which == "step" else 1
        seconds = {name: factor * value for name, value in seconds.items()}
        row = table.row(CASE, which, table.Measured(seconds, []), H100, 91500)
        record.add("rows", row, "")
    loaded = gpu_tables.load("A GPU")
    assert {row.dtype for row in loaded} == {"bfloat16"}
    assert {row.pass_name: row.speedup for row in loaded} == pytest.approx(
        dict.fromkeys(("forward", "grad_x", "grad_w", "backward"), 4.0)
    )


def worst_result(tmp_path: Path) -> dict[str, Any]:
    record = Record(tmp_path, is_quick=False)
    for section in SECTIONS:
        for index in range(300):
            record.result[section]["failures"].append(f"{index}: {'long ' * 100}")
    for case in cases.cases():
        for which in cases.PASSES:
            row = table.row(case, which, measured(dense=1.0), None, 90000)
            record.result["rows" if case.ndim == 2 else "rows_3d"].append(row)
    row = {"model": "m" * 99, "mode": "compiled", "backend": "triton", "skipped": "why " * 99, "ms": None}
    record.result["models"] = [row | {"speedup_vs_dense": None}] * 100
    record.result["sanitizer"] = "error " * 1000
    return record.result


def test_the_summary_fits_and_ends_with_the_telling_rows(tmp_path: Path) -> None:
    text = summary(worst_result(tmp_path))
    assert len(text.encode()) <= 10_000
    last = text.splitlines()[-1].split()
    assert last[:4] == ["9", "64", "56", "forward"]
    assert "and 1488 more" in text


def test_the_summary_names_what_is_wrong(tmp_path: Path) -> None:
    record = Record(tmp_path, is_quick=False)
    record.fail("table", "k=9 128x28x28 batch=334 forward: 3 elements were not written")
    row = table.row(CASE, "forward", measured()._replace(problems=["bad"]), H100, 91500)
    record.add("rows", row, "")
    text = summary(record.result)
    assert "k=9 128x28x28 batch=334 forward: 3 elements were not written" in text
    assert " wrong " in text
    assert "not yet" in text


def test_the_summary_means_what_is_right_and_telling(tmp_path: Path) -> None:
    record = Record(tmp_path, is_quick=False)
    fast, slow = measured(), measured(ours=measured().seconds["dense"])
    broken = measured(dense=1.0)
    for found in (fast, slow, broken, fast._replace(problems=["bad"])):
        record.add("rows", table.row(CASE, "forward", found, H100, 91500), "")
    assert "k=9, C >= 128, times dense in the mean: forward 2.00 (2)" in summary(record.result)


def test_the_record_is_on_disk_after_every_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(tmp_path, is_quick=True)
    record.say("first line")
    record.name({"gpu": "A GPU"})
    record.add("rows", {"pass": "forward"}, "a row")
    with record.phase("table"):
        record.fail("table", "something")
    saved = json.loads((tmp_path / "quick-gpu-A-GPU.json").read_text())
    assert saved["rows"] == [{"pass": "forward"}]
    assert saved["table"]["failures"] == ["something"]
    assert saved["seconds"]["table"] >= 0
    assert (tmp_path / "quick-gpu-A-GPU.log").read_text() == capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".log"]


def test_rivals_take_turns_and_slow_ones_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of our own: each replay lasts what its rival says."""
    now, replayed = [0.0], []

    class Graph:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def replay(self) -> None:
            now[0] += self.seconds
            replayed.append(self.name)

    def stopwatch(call: Any, repeats: int = 1) -> float:
        start = now[0]
        for _ in range(repeats):
            call()
        return (now[0] - start) / repeats

    monkeypatch.setattr(timing, "capture", lambda calls: Graph(*calls[0]))
    monkeypatch.setattr(timing, "stopwatch", stopwatch)
    calls: Any = {"ours": [("ours", 0.012)] * 4, "dense": [("dense", 0.02)] * 4}
    assert timing.race(calls, timing.FULL) == pytest.approx({"ours": 0.003, "dense": 0.005})
    assert replayed == ["ours", "dense", *(["ours"] * 4 + ["dense"] * 3) * 5], "30 ms of replays before each sample"
    replayed.clear()
    slow: Any = {"ours": [("ours", 0.5)], "dense": [("dense", 2.0)]}
    assert timing.race(slow, timing.FULL) == pytest.approx({"ours": 0.5, "dense": 2.0})
    assert replayed.count("dense") == 1 + 2 * 2
