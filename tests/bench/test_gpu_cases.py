"""What the GPU benchmark would run: every kernel, dtype and stage, the most telling first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import cases, checks


def test_the_table_covers_every_kernel_size_and_stage_once() -> None:
    planar = [case for case in cases.cases() if case.ndim == 2]
    stages = {(case.channels, case.size) for case in planar}
    assert len(set(planar)) == len(planar) == 5 * 14
    assert {(case.kernel_size, case.channels, case.size) for case in planar} == {
        (k, *stage) for k in (3, 5, 7, 9, 11) for stage in stages
    }
    assert {case.channels for case in planar} == {64, 128, 256, 512}
    assert {case.kernel_size for case in cases.cases() if case.ndim == 3} == {3, 5}


def test_telling_rows_come_first() -> None:
    first = cases.full().first
    assert [case.kernel_size for case in first] == [9] * 4 + [5] * 4 + [3] * 4
    assert [case.channels for case in first] == [64, 128, 256, 512] * 3
    assert cases.cases()[: len(first)] == first
    assert {case.kernel_size for case in cases.full().second} == {7, 11}


def test_inputs_are_large_and_every_batch_fits_its_case() -> None:
    for case in cases.cases():
        elements = case.batch * case.channels * case.size**case.ndim
        assert case.batch == 512 or elements > 0.96 * 2**25, case
        assert case.layer.batch == case.batch
        assert case.layer.spec.output_size(case.layer.size) == case.layer.size


def test_checks_reach_every_dtype_and_kernel() -> None:
    layers = cases.full().checks
    assert {layer.dtype for layer in layers} == {torch.float32, torch.float16, torch.bfloat16}
    assert {len(layer.size) for layer in layers} == {1, 2, 3}
    assert any(layer.groups > 2 for layer in layers)
    assert any(layer.groups == 2 for layer in layers)
    assert any(layer.antialias for layer in layers)
    assert any(layer.stride > 1 for layer in layers)
    sections = [section for section, *_ in checks.jobs(cases.full())]
    assert sections.count("warps8") == 6
    of_invariants, of_determinism, of_tiles = 2 * 3, 1, 6
    assert sections.count("checks") == len(layers) + of_invariants + of_determinism + of_tiles


def test_the_floor_is_the_larger_of_traffic_and_product() -> None:
    case = cases.Case(9, 64, 56)
    traffic = case.floor("forward", 1e9, 1e30)
    assert traffic == pytest.approx(2 * 2 * case.batch * 56 * 56 * 64 / 1e9)
    assert case.floor("forward", 1e30, 1e9) == pytest.approx(2 * case.batch * 56 * 56 * 64 * 64 * 5 / 1e9)
    assert case.floor("step", 1e9, 1e30) == pytest.approx(3 * traffic)
    assert case.dense_flop("step") == 3 * 2 * case.batch * 56 * 56 * 64 * 64 * 81


def test_a_network_lists_its_layers_without_a_gpu() -> None:
    network = cases.quick().networks[0]
    layers = network.layers()
    assert len(set(layers)) == len(layers) > 4
    assert all(layer.batch == network.batch and layer.dtype is torch.bfloat16 for layer in layers)
    assert layers[0].channels[0] == 3
    assert layers[0].size == (network.size, network.size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_listing_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "k=9 64x56x56 batch=167" in listed
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("option", ["--minutes", "--limit", "--workers"])
def test_bad_options_are_named(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([option, "-1"])
    assert f"{option} must be positive, got -1" in capsys.readouterr().err


EXTRAS = ("scipy", "skimage", "matplotlib", "rich", "hypothesis", "expecttest", "pytest", "psutil", "SRE_Conv")


def test_it_needs_torch_triton_and_numpy_alone() -> None:
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS}))\n"  # importing any of them raises
        "from bench.gpu import __main__ as command\n"
        "import sre_triton.backends.triton\n"
        "assert command.main(['--list']) == 0\n"
        "import torch\n"
        "sys.exit(0 if torch.cuda.is_available() else command.main([]) - 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
