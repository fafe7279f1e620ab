"""The compile report: how machine code is read and what CI refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import aot, compile_report
from bench.gpu.cases import full

ROW = {
    "kernel": "ring_conv_fwd_kernel", "arch": "sm_90", "dtype": "bf16", "kernel_size": 5, "config": {"R": 4},
    "default": True, "registers": 100, "spill_bytes": 0, "shared_bytes": 0, "mma": "wgmma",
    "instructions_per_element_tap": 1.0, "tensor_memory": 0, "error": None,
}  # fmt: skip


def test_loops_count_by_their_trips_and_waits_once() -> None:
    code = ["MOV", "LDG", "HGMMA", "BRA back", "SYNCS", "BRA wait", "EXIT"]
    assert aot._executed(code, [(1, 3), (4, 5)], "LDG", 4) == 7 + 3 * 3


def test_kinds_of_matrix_instructions() -> None:
    kinds = (("tcgen05", r"UTC\w*MMA"), ("wgmma", r"[HQI]GMMA"), ("mma", r"[HQID]MMA"))
    assert aot._mma(["HADD2", "HGMMA.64x64x16"], kinds) == "wgmma"
    assert aot._mma(["UTCHMMA gdesc"], kinds) == "tcgen05"
    assert aot._mma(["HMMA.16816"], kinds) == "mma"
    assert aot._mma(["FFMA"], kinds) == "none"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"mma": "none"}, "no matrix instruction"),
        ({"error": "RuntimeError: tensor memory: 640 columns of 512"}, "640 columns"),
        ({"instructions_per_element_tap": 1.11}, "1.0 before"),
        ({"kernel_size": 7}, "not in the baseline"),
    ],
)
def test_ci_refuses(change: dict[str, object], words: str) -> None:
    assert compile_report.failures([ROW], [ROW]) == []
    (problem,) = compile_report.failures([ROW | change], [ROW])
    assert words in problem


def test_what_ci_compiles_has_a_baseline() -> None:
    assert set(compile_report.quick_cases()) <= set(compile_report.cases())


def test_all_that_the_gpu_benchmark_launches_is_compiled_at_its_batch() -> None:
    compiled = set(compile_report.gpu_cases())
    operations = {case.operation for case in compiled}
    assert operations == {"planned", "forward", "transpose", "weight_grad", "backward"}
    for case in full().cases:
        for operation in operations:
            assert compile_report.Case.of(case.layer, operation, "tf32") in compiled
    singles = [case for case in compiled if case.dtype == "fp32"]
    assert {case.precision for case in singles} == {"tf32", "ieee"}


def test_a_report_has_one_row_a_line_and_the_schema() -> None:
    text = compile_report.as_json([ROW, ROW | {"kernel_size": 9}])
    assert [row["kernel_size"] for row in json.loads(text)["rows"]] == [5, 9]
    assert text.count("\n") == 4
    committed = json.loads(compile_report.BASELINE.read_text())["rows"]
    assert all(set(row) == set(ROW) for row in committed)


def test_baseline_meets_the_targets() -> None:
    found = json.loads(compile_report.BASELINE.read_text())["rows"]
    assert {row["arch"] for row in found} == set(aot.TARGETS)
    for row in found:
        assert row["error"] is None
        assert row["spill_bytes"] == 0
        if compile_report.needs_matrix_instruction(row):
            assert row["mma"] != "none"
    for k, limit in ((3, 1.9), (5, 1.1), (9, 0.75)):
        chosen = [
            row
            for row in found
            if (row["arch"], row["dtype"], row["kernel_size"], row["default"]) == ("sm_90", "bf16", k, True)
            and "fwd" in row["kernel"]
        ]
        assert chosen
        assert all(row["instructions_per_element_tap"] <= limit and row["mma"] == "wgmma" for row in chosen)


def in_fresh_process(code: str, cache: Path) -> None:
    """Kernels imported for the interpreter, as those of these tests, cannot be compiled."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=Path(__file__).parents[2])


def test_one_kernel_compiles_without_a_gpu(tmp_path: Path) -> None:
    code = (
        "from bench import compile_report as r\n"
        "row, = r.rows(['sm_90'], [r.Case(kernel_size=5)])\n"  # three rings: a pair, and one alone
        "assert row['error'] is None and row['mma'] == 'wgmma' and not row['spill_bytes'], row\n"
    )
    in_fresh_process(code, tmp_path)


def test_kernels_are_compiled_once_and_side_by_side(tmp_path: Path) -> None:
    code = (
        "from bench import compile_report as r\n"
        "cases = [r.Case('expand', 3), r.Case('expand', 3), r.Case('collapse', 3)]\n"
        "alone, together = (list(r.rows(['sm_90'], cases, jobs)) for jobs in (1, 2))\n"
        "assert alone == together, (alone, together)\n"
        "names = [row['kernel'] for row in alone]\n"
        "assert names == ['ring_expand_kernel', 'ring_collapse_kernel'], names\n"
    )
    in_fresh_process(code, tmp_path)


def test_full_float32_and_loose_weights_are_kernels_of_their_own(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from bench import compile_report as r\n"
        "before, configs = torch.backends.cudnn.conv.fp32_precision, []\n"
        "for channels, size, precision in ((16, 8, 'tf32'), (16, 8, 'ieee'), (128, 128, 'ieee')):\n"
        "    case = r.Case(dtype='fp32', channels=channels, size=size, batch=32, precision=precision)\n"
        "    configs.append(r.describe(case, case.launches('sm_90')[-1], 'sm_90')['config'])\n"
        "assert [c.get('precision') for c in configs] == [None, 'ieee', 'ieee'], configs\n"
        "assert [c.get('loose_weights', False) for c in configs] == [True, True, False], configs\n"
        "assert torch.backends.cudnn.conv.fp32_precision == before\n"
    )
    in_fresh_process(code, tmp_path)
