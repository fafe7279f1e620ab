"""The benchmark suite and the planner's cost model that it fits. Nothing here measures speed but the slow test."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")
from bench import fit_plan, losses, networks, report, timing
from bench import scaling as bench_scaling
from bench.__main__ import main
from bench.cases import CASES, QUICK_CASES, Case, cases
from sre_triton.backends import native
from sre_triton.geometry.conv import conv_spec
from sre_triton.geometry.schedule import ring_schedule
from sre_triton.planning import cpu_cost as cost
from sre_triton.planning.plan import plan_call

FLOAT, HALF = torch.float32, torch.bfloat16


def square(channels: int, size: int, *, batch: int = 8, in_channels: int = 0, **options: int) -> Case:
    return Case("test", 2, batch, in_channels or channels, channels, size, **options)


# The registry ---------------------------------------------------------------------------------------


def test_names_tell_cases_apart_and_quick_ones_are_among_them() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert set(QUICK_CASES) <= set(names)
    assert {case.name for case in cases(quick=True)} == set(QUICK_CASES)
    assert all("unet" in case.name for case in cases(name="unet"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_is_a_convolution(case: Case) -> None:
    for k in case.kernel_sizes:
        for kind in fit_plan.KINDS:
            call = fit_plan.make_call(kind, case, k, FLOAT)
            assert call.pixels == case.batch * (-(-case.size // case.stride)) ** case.ndim
            assert plan_call(call, "auto").backend in fit_plan.BACKENDS


def test_the_means_are_over_ordinary_layers() -> None:
    counted = [case for case in CASES if case.in_mean]
    assert {case.ndim for case in counted} == {2, 3}
    assert all(32 <= c <= 512 for case in counted for c in (case.in_channels, case.out_channels))
    assert all(case.groups == case.stride == 1 for case in counted)


# The command ----------------------------------------------------------------------------------------


def test_a_quick_run_makes_table_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark would do nothing beside other tests
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    options = ["--quick", "--filter", "tiny", "--k", "3", "--threads", "1"]
    assert main([*options, "--json", str(figures), "--png", str(picture)]) == 0
    assert "tiny.64@8" in capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert set(found) == {"environment", "means", "cases"}
    assert found["environment"]["threads"] == 1
    (case,) = (case for case in found["cases"] if case["device"] == "cpu")
    assert set(case["modes"]) == {"infer", "train", "infer-bf16", "train-bf16"}
    for mode in case["modes"].values():
        assert set(mode["median"]) == set(mode["iqr"])
        assert all(seconds > 0 for seconds in mode["median"].values())
    assert set(case["modes"]["train"]["ratio"]) == {"sre_triton", "nn.Conv", "floor", "SRE_Conv", "GMR_Conv"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_filter_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    assert main(["--filter", "no such case", "--png", str(tmp_path / "none.png")]) != 0
    assert not list(tmp_path.iterdir())


def test_scaling_times_both_layers_with_both_numbers_of_threads() -> None:
    before = torch.get_num_threads()
    found = bench_scaling.scaling(square(16, 16), 3, 2, train=True)
    assert set(found) == {"sre_triton", "nn.Conv"}
    assert all(ratio > 0 for ratio in found.values())
    assert torch.get_num_threads() == before


def test_means_are_geometric_and_count_ordinary_layers_alone() -> None:
    def row(name: str, speedup: float, in_mean: bool) -> report.Row:
        info = {"in_mean": in_mean, "case": {"ndim": 2}, "ratio": {"nn.Conv": speedup, "floor": 0.5}}
        return report.Row(name, 3, "cpu", {"infer": info})

    rows = [row("a", 2.0, True), row("b", 8.0, True), row("c", 100.0, False)]
    (found,) = report.means(rows).values()
    assert found["infer"] == pytest.approx(4)
    assert found["time / floor"] == pytest.approx(2)
    assert "train" not in found


# The cost model -------------------------------------------------------------------------------------

HARD = {
    "depthwise": (square(64, 32, groups=64), 9),
    "stem": (square(64, 64, in_channels=3), 3),
    "tiny": (square(32, 4, batch=1), 3),
    "small": (square(64, 8, batch=1), 3),
    "pointwise": (square(64, 32), 1),
}


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "not in this test")


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize(("case", "k"), HARD.values(), ids=HARD)
@pytest.mark.usefixtures("without_native")
def test_layers_with_nothing_to_save_are_planned_dense(case: Case, k: int, dtype: torch.dtype) -> None:
    assert plan_call(fit_plan.make_call("forward", case, k, dtype), "auto").backend == "dense"


@pytest.mark.parametrize("kind", [*fit_plan.KINDS, "transpose", "weight_grad"])
@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("k", [5, 9])
@pytest.mark.parametrize(("path", "words"), [("ringwise", "ring-wise"), ("native", "native")])
def test_ordinary_layers_are_not_planned_dense(
    path: str, words: str, k: int, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "missing", lambda: None if path == "native" else "not in this test")
    plan = plan_call(fit_plan.make_call(kind, square(64, 32), k, dtype), "auto")
    assert plan.backend == path
    assert plan.reason.startswith("predicted ")
    assert f"ms {words} against" in plan.reason
    assert plan.reason.endswith("ms dense")


def test_dense_products_leave_out_taps_in_the_padding() -> None:
    case = square(16, 4, batch=1)
    inside = sum(
        0 <= y + dy < 4 and 0 <= x + dx < 4
        for y in range(4) for x in range(4) for dy in range(-2, 3) for dx in range(-2, 3)
    )  # fmt: skip
    assert cost.dense_work(fit_plan.make_call("forward", case, 5, FLOAT)).products == pytest.approx(inside * 16 * 16)


@pytest.mark.parametrize("case", [square(64, 32), square(64, 32, groups=2)], ids=["plain", "grouped"])
@pytest.mark.parametrize("work", [cost.ringwise_work, cost.native_work])
def test_a_strided_backward_is_the_sum_of_its_parts(case: Case, work: Any) -> None:
    strided = Case("test", 2, 8, 64, 64, 32, stride=2, groups=case.groups)
    whole, *parts = (
        work(fit_plan.make_call(kind, strided, 5, FLOAT)) for kind in ("backward", "transpose", "weight_grad")
    )
    assert whole == pytest.approx([a + b for a, b in zip(*parts, strict=True)])


def test_work_is_what_a_hand_counts() -> None:
    """A 3x3 layer from 24 to 40 channels on two images of 8x8: 128 pixels; two rings by 5 steps (centre, two row and
    two column pairs); channels of products in sixteens, 14 pixels and 32 channels to a call."""
    case = Case("test", 2, 2, 24, 40, 8)
    forward, backward = (fit_plan.make_call(kind, case, 3, FLOAT) for kind in ("forward", "backward"))
    kernel, activations = 9 * 24 * 40, 128 * (24 + 40)
    products = (8 * 3 - 2) ** 2 * 2 * 24 * 48  # taps within the images
    assert cost.dense_work(forward) == (1, pytest.approx(products), 0, 0, kernel, activations)
    assert cost.dense_work(backward) == (2, 0, pytest.approx(2 * products), 0, 2 * kernel, 2 * activations)
    pixels, sums = 128, 128 * 24
    assert cost.native_work(forward) == (
        1, sums, pixels // 8 * 5, sums * 5, sums * 2 * 48, 0, 0, 10 * 2, 2 * 24 * 48, pixels * 40
    )  # fmt: skip
    assert cost.ringwise_work(forward) == (1, 5 + 2 + 2, sums * 5, 0, sums * (1 + 2), sums * 2 * 48, pixels * 40)
    sums = 128 * 40  # the gradients share those of the output's
    assert cost.native_work(backward) == (
        1, sums, pixels // 8 * 5, sums * 5, 0, 2 * sums * 2 * 32, 0, 2 * 10, 2 * 2 * 40 * 32, 2 * pixels * 24
    )  # fmt: skip
    assert cost.ringwise_work(backward) == (
        1, 5 + 2 + 4, sums * 5, 0, sums * (1 + 2), 2 * sums * 2 * 32, 2 * pixels * 24
    )  # fmt: skip


def test_depthwise_layers_are_weighed_tap_by_tap() -> None:
    """A 5x5 layer of 24 channels on two images of 8x8: 21 taps within the circle, channels in sixteens. Where there
    is a gradient of the weight there are ring sums, which serve that of the input, too."""
    case = Case("test", 2, 2, 24, 24, 8, groups=24)
    forward, backward, weight_grad = (
        cost.native_work(fit_plan.make_call(kind, case, 5, FLOAT)) for kind in ("forward", "backward", "weight_grad")
    )
    assert forward == (1, 0, 0, 0, 0, 0, 128 * 21 * 32, 0, 21 * 24, 128 * 24)
    assert backward.taps == weight_grad.taps == 0
    assert backward.additions == pytest.approx(weight_grad.additions)
    assert backward.gradient_products == pytest.approx(2 * weight_grad.gradient_products)
    assert weight_grad.additions > 0
    inside = (8 * 5 - 2 * (1 + 2)) ** 2 * 2
    assert cost.dense_work(fit_plan.make_call("forward", case, 5, FLOAT)) == (
        1, 0, 0, pytest.approx(inside * 32), 25 * 24, 128 * 24
    )  # fmt: skip


@pytest.mark.parametrize("k", [3, 5, 7])
def test_depthwise_inference_is_planned_native_where_there_is_the_kernel(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own kernel is as fast for channels_last alone, and the plan does not look at layouts."""
    call = fit_plan.make_call("forward", Case("test", 2, 8, 96, 96, 28, groups=96), k, FLOAT)
    for missing, backend in ((None, "native"), ("not in this test", "dense")):
        monkeypatch.setattr(native, "missing", lambda missing=missing: missing)
        assert plan_call(call, "auto").backend == backend


@pytest.mark.slow
def test_losses_are_raced_in_processes_of_their_own() -> None:
    case = Case("test", 2, 1, 8, 8, 8, groups=8)
    with losses.contestants(1) as ready:
        assert set(ready) == {(kind, name) for kind in ("ours", "nn.Conv2d") for name in ("nchw", "nhwc")}
        found = losses.race(ready, case, 3, "train", rounds=3)
    assert [loss.memory_format for loss in found] == ["nchw", "nhwc"]
    for loss in found:
        assert loss.ratio > 0 < loss.milliseconds
        assert loss.is_loss == (loss.ratio < losses.GOAL)
        assert len(loss.plan.split(" / ")) == 2


def test_every_addition_of_a_strided_convolution_is_strided() -> None:
    for stride in (1, 2):
        work = cost.ringwise_work(fit_plan.make_call("forward", Case("test", 2, 2, 24, 40, 8, stride=stride), 3, FLOAT))
        assert work.strided == (stride - 1) * work.additions


def test_a_step_that_weighs_and_adds_is_two_operations() -> None:
    spec = conv_spec(2, 5, 3, True, True, (1, 1), (2, 2), (1, 1), 1)
    call = fit_plan.make_call("forward", square(24, 8), 5, FLOAT)._replace(spec=spec)
    _, schedule = ring_schedule(spec.geometry, (2, 2))
    weighed, added = (
        sum(test(step) for step in schedule.steps)
        for test in (lambda step: step.factor != 1, lambda step: step.left is not None)
    )
    assert sum(step.factor != 1 and step.left is not None for step in schedule.steps) > 0
    assert cost.ring_sums(call).operations == weighed + added


@pytest.mark.parametrize("device", ["cpu", "xpu"])
@pytest.mark.parametrize("dtype", [FLOAT, HALF])
def test_no_work_is_paid_back(device: str, dtype: torch.dtype) -> None:
    for rate in cost.rates(device, dtype).values():
        assert min(rate) >= 0


@pytest.mark.parametrize(("other", "head_start"), [("native", 0.0), ("ringwise", 4e-5)])
@pytest.mark.parametrize(
    ("kind", "channels", "groups", "margin"),
    [
        ("forward", (64, 64), 1, 1.1),
        ("forward", (8, 64), 1, 1.1),
        ("forward", (7, 64), 1, 1.6),
        ("forward", (64, 7), 1, 1.6),
        ("forward", (28, 28), 4, 1.6),
        ("forward", (32, 32), 4, 1.1),
        ("backward", (7, 64), 1, 1.1),
        ("weight_grad", (7, 64), 1, 1.1),
    ],
)
def test_what_is_hardly_faster_is_left_to_the_dense_path(
    kind: str, channels: tuple[int, int], groups: int, margin: float, other: str, head_start: float
) -> None:
    case = Case("test", 2, 8, *channels, 32, groups=groups)
    call = fit_plan.make_call(kind, case, 5, FLOAT)
    even = margin * 1e-3 + head_start
    assert cost.choose(call, {"dense": 0.999 * even, other: 1e-3}) == "dense"
    assert cost.choose(call, {"dense": 1.001 * even, other: 1e-3}) == other


def test_no_pixels_cost_no_products() -> None:
    call = fit_plan.make_call("backward", square(64, 8, batch=0), 3, FLOAT)
    assert cost.dense_work(call).gradient_products == cost.ringwise_work(call).products == 0
    assert cost.native_work(call).gradient_products == 0
    assert plan_call(call, "auto").backend in fit_plan.BACKENDS


def test_a_fit_recovers_the_rates_that_made_the_times() -> None:
    generator = random.Random(0)
    true = cost.rates("cpu", FLOAT)
    calls = [
        fit_plan.make_call(generator.choice(fit_plan.KINDS), *shape, FLOAT) for shape in fit_plan.random_cases(80, 1)
    ]
    samples = [fit_plan.Sample(call, cost.estimate(call, true)) for call in calls]
    found = fit_plan.fit_rates(samples)
    for path, true_rates in true.items():
        assert found[path] == pytest.approx(true_rates, rel=1e-3, abs=1e-6)
    for path in ("ringwise", "native"):
        verdict = fit_plan.verdict(samples, found, path)
        assert verdict.worst_loss < 2
        assert verdict.worst_loss_to_dense <= 1


def test_the_fitting_command_prints_rates_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_plan.main(["--shapes", "6"]) == 0
    for found in json.loads(capsys.readouterr().out).values():
        assert set(found["rates"]) == set(fit_plan.BACKENDS)
        assert cost.DenseWork(**found["rates"]["dense"])
        assert all(0 <= verdict["hit_rate"] <= 1 for verdict in found["held_out"])


@pytest.mark.slow
def test_no_plan_loses_a_tenth_to_dense_on_the_registry() -> None:
    assert fit_plan.check_registry() == 0


# Networks -------------------------------------------------------------------------------------------


def test_networks_are_timed_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "_SIZES", [3, 3, 3, 3])
    path = tmp_path / "networks.json"
    options = ["--filter", "sre", "--batch", "2", "--size", "8", "--rounds", "1", "--threads", "1"]
    assert networks.main([*options, "--json", str(path)]) == 0
    assert "reference / ours" in " ".join(capsys.readouterr().out.split())
    figures = json.loads(path.read_text())
    assert [row["mode"] for row in figures["networks"]] == ["train", "infer", "fused"]
    assert set(figures["networks"][0]["seconds"]) == {
        f"{name} {layout}" for name in ("reference", "sre_triton", "plain 3x3") for layout in ("nchw", "nhwc")
    }  # fmt: skip
    assert networks.main(["--filter", "vgg"]) == 2


def test_rival_networks_have_the_same_stem_and_the_parameters_they_should_have() -> None:
    for case in networks.CASES:
        entries = networks.contestants(case)
        counts = {name: sum(p.numel() for p in network.parameters()) for name, (network, _) in entries.items()}
        assert counts["reference nchw"] == counts["sre_triton nchw"] == counts["sre_triton nhwc"]
        assert counts["plain 3x3 nchw"] == 11_176_521
        assert all(network.conv1.kernel_size == (5, 5) for network, _ in entries.values())


def test_ratios_take_the_faster_format_of_each() -> None:
    def times(*seconds: float) -> timing.Times:
        return timing.Times(seconds)

    row = networks.Row("x", "train", {
        "reference nchw": times(6, 6), "sre_triton nchw": times(3, 3), "sre_triton nhwc": times(2, 2),
        "plain 3x3 nchw": times(4, 4), "plain 3x3 nhwc": times(5, 5),
    })  # fmt: skip
    assert row.best("sre_triton") == ("nhwc", 2)
    assert (row.reference_over_ours, row.ours_over_plain) == (3, 0.5)


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="the targets are for oneDNN's convolutions")
def test_a_training_step_is_fast_enough() -> None:
    row = networks.measure(networks.CASES[0], "train", batch=16, size=32, rounds=3, threads=1)
    assert row.reference_over_ours > 2
    assert row.ours_over_plain < 1.5
