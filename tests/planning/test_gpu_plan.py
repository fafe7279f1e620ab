"""The automatic plan on a GPU: a model of devices that need not be there, and tables that replace it."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sre_triton.backends import measurements
from sre_triton.backends.base import Call
from sre_triton.geometry.conv import ConvArgs, conv_spec
from sre_triton.geometry.rings import default_num_rings
from sre_triton.planning import gpu_cost, gpu_tables, plan
from sre_triton.planning.gpu_cost import Gpu
from sre_triton.planning.plan import plan_call, plan_on_gpu

H100 = Gpu("Some H100", processors=132, clock=1.75e9, bandwidth=3.35e12, tensor_flop=4096)
KINDS = ("forward", "transpose", "weight_grad", "backward")


def call(
    kernel_size: int = 9,
    in_channels: int = 64,
    out_channels: int | None = None,
    size: int = 56,
    batch: int = 64,
    kind: str = "forward",
    dtype: torch.dtype = torch.bfloat16,
    stride: int = 1,
    groups: int = 1,
    antialias: bool = False,
) -> Call:
    k = kernel_size
    spec = conv_spec(
        2, k, default_num_rings(k), True, antialias, (stride,) * 2, (k // 2,) * 2, (1, 1), groups
    )  # fmt: skip
    device = torch.device("cuda", 0)
    return Call(kind, spec, batch, in_channels, out_channels or in_channels, (size, size), dtype, device)


def predicted(*args: Any, gpu: Gpu = H100, **kwargs: Any) -> str:
    estimate = gpu_cost.estimate(call(*args, **kwargs), gpu)
    return estimate.backend if estimate else "dense"


# The model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(64, 56), (128, 28), (256, 14), (512, 7)])
def test_large_kernels_of_a_resnet_take_triton(channels: int, size: int) -> None:
    for kind in KINDS:
        assert predicted(9, channels, size=size, batch=256, kind=kind) == "triton", kind
    assert predicted(5, channels, size=size, batch=256) == "triton"


def test_small_kernels_stay_dense() -> None:
    for channels, kind in itertools.product((32, 64, 128, 256), KINDS[:3]):
        assert predicted(3, channels, kind=kind) == "dense", (channels, kind)


def test_what_is_too_narrow_for_matrix_units_stays_dense() -> None:
    assert predicted(9, 3, 64) == "dense"
    assert predicted(9, 64, groups=64) == "dense"
    assert predicted(9, 64, groups=8) == "dense"
    assert predicted(9, 256, groups=2) == "triton"


def test_images_that_do_not_fill_the_chip_stay_dense() -> None:
    assert predicted(9, 64, size=8, batch=1) == "dense"
    assert predicted(9, 64, size=56, batch=64) == "triton"


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_grows_with_the_work(kind: str) -> None:
    def seconds(**kwargs: Any) -> tuple[float, float]:
        estimate = gpu_cost.estimate(call(kind=kind, **kwargs), H100)
        assert estimate is not None
        return estimate

    base = seconds()
    for more in ({"batch": 128}, {"kernel_size": 11}, {"in_channels": 128, "out_channels": 64}, {"size": 80}):
        assert all(b > a > 0 for a, b in zip(base, seconds(**more), strict=True)), more
    assert seconds(antialias=True)[1] > base[1]
    assert seconds(dtype=torch.float16)[1] > base[1]  # its sums are not packed
    assert seconds(dtype=torch.float32)[0] > base[0]


def seconds_per_image(gpu: Gpu, *args: Any, **kwargs: Any) -> tuple[float, float]:
    """Of the device, what each image more costs on the dense and on the Triton backend."""
    few, many = (gpu_cost.estimate(call(*args, batch=n, **kwargs), gpu, in_graph=True) for n in (1000, 2000))
    return (many.dense - few.dense) / 1000, (many.triton - few.triton) / 1000


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.bfloat16, 2), (torch.float32, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_computes_in_no_time_takes_what_its_bytes_take(dtype: torch.dtype, itemsize: int, stride: int) -> None:
    dense, triton = seconds_per_image(replace(H100, clock=1e30), 5, 64, 128, size=56, dtype=dtype, stride=stride)
    activations = itemsize * (64 * 56**2 + 128 * (56 // stride) ** 2)
    assert dense == pytest.approx(activations / (0.85 * 3.35e12))
    assert triton == pytest.approx(activations / (0.7 * 3.35e12))


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 1.0), (torch.float32, 0.5)])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_moves_in_no_time_takes_what_its_products_take(dtype: torch.dtype, share: float, groups: int) -> None:
    dense, triton = seconds_per_image(replace(H100, bandwidth=1e30), 5, 64, size=56, dtype=dtype, groups=groups)
    pixels, peak = 56**2, 132 * 1.75e9 * 4096 * share
    assert dense == pytest.approx(2 * pixels * 25 * 64 * 64 / groups / (0.7 * peak))
    # Three rings of 1, 8 and 12 taps are added up by the ordinary units, 128 lanes each, and multiplied by the others.
    adds = pixels * 64 * (6.0 + 21 * (0.67 if dtype == torch.bfloat16 else 2.15)) / (0.4 * 132 * 128 * 1.75e9)
    assert triton == pytest.approx(adds + 2 * pixels * 3 * 64 * 64 / groups / (0.3 * peak))


def test_a_faster_gpu_is_predicted_to_be_faster() -> None:
    slow = Gpu("slow", processors=66, clock=1.75e9, bandwidth=1.6e12, tensor_flop=4096)
    for kind in KINDS:
        fast, halved = (gpu_cost.estimate(call(kind=kind), gpu) for gpu in (H100, slow))
        assert fast is not None
        assert halved is not None
        assert halved.dense > fast.dense
        assert halved.triton > fast.triton


# Host time --------------------------------------------------------------------------------------------

SMALL = {"kernel_size": 9, "size": 8, "batch": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_is_waited_for_in_eager_calls_alone(kind: str) -> None:
    eager, replayed = (gpu_cost.estimate(call(kind=kind, **SMALL), H100, in_graph) for in_graph in (False, True))
    assert eager is not None
    assert replayed is not None
    assert eager.dense > replayed.dense
    assert eager.triton >= replayed.triton
    large = {"kernel_size": 9, "in_channels": 256, "size": 56, "batch": 256, "kind": kind}
    assert gpu_cost.estimate(call(**large), H100) == gpu_cost.estimate(call(**large), H100, in_graph=True)


def test_launches_are_counted_as_they_are() -> None:
    """One for the fused forward, a pair per chunk for two kernels, two for a gradient with its sums in registers."""

    def starts(**kwargs: Any) -> float:
        cost = gpu_cost._triton_cost(call(**kwargs), H100)
        return round((cost.host - gpu_cost._HOST_CALL) / 1e-6)

    ours, theirs = round(gpu_cost._HOST_LAUNCH * 1e6), round(gpu_cost._HOST_OPERATION * 1e6)
    assert starts(kernel_size=5) == ours + theirs
    assert starts(kernel_size=5, stride=2, kind="transpose") == 4 * ours + theirs
    assert starts(kernel_size=9, kind="weight_grad") == 2 * ours
    assert starts(kernel_size=9, kind="backward") == 3 * ours + theirs
    small = {"kernel_size": 9, "in_channels": 256, "size": 8, "batch": 1}
    assert starts(**small) == ours + 2 * theirs
    assert starts(**small, kind="backward") == 3 * ours + 2 * theirs
    assert starts(**(small | {"batch": 2048})) > starts(**small)


def test_the_plan_says_whether_the_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.triton, "refusal", lambda call: None)
    monkeypatch.setattr(gpu_cost, "describe", lambda device: H100)
    monkeypatch.setattr(gpu_tables, "load", lambda name: [])
    assert plan_call(call(), "auto").reason.endswith(", time of the host included")
    assert plan_call(call(), "auto", in_graph=True).reason.endswith(", in a CUDA graph")
    captured = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured[0])
    one = call()
    spec = one.spec
    args = ConvArgs(spec.stride, spec.padding, spec.dilation, spec.groups, 9, True, False, "auto")
    reasons = []
    for captured[0] in (False, True):
        with plan.recording() as records:
            plan.plan_pass("forward", (64, 64, 56, 56), 64, spec.geometry.num_rings, args, one.dtype, one.device)
        reasons.append(records[0][1].reason)
    plan._planned.cache_clear()
    assert reasons == [plan_call(one, "auto", in_graph).reason for in_graph in (False, True)]


def test_a_plan_can_be_made_for_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.triton, "refusal", lambda call: None)
    absent = gpu_cost.gpu_of("sm_90", 132)
    assert absent == Gpu("", 132, 1.75e9, 3.3e12, 4096)
    assert plan_on_gpu(call(9, batch=256), absent, in_graph=True).backend == "triton"
    assert plan_on_gpu(call(3, size=4, batch=1), absent).backend == "dense"
    with pytest.raises(ValueError, match=r"arch must be one of sm_80, .*, got 'sm_70'"):
        gpu_cost.gpu_of("sm_70", 80)


def properties(**fields: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**({"name": "X", "multi_processor_count": 100} | fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"major": 9, "minor": 0, "clock_rate": 1_700_000, "memory_clock_rate": 2_600_000, "memory_bus_width": 5120},
            Gpu("X", 100, 1.7e9, 2 * 2.6e9 * 640, 4096),
        ),
        ({"major": 8, "minor": 0}, Gpu("X", 100, 1.41e9, 1.55e12, 2048)),
        ({"major": 10, "minor": 3}, Gpu("X", 100, 1.85e9, 7.7e12, 8192)),  # unlisted: as the first of its generation
        ({"major": 9, "minor": 4, "gcnArchName": "gfx942:sramecc+"}, Gpu("X", 100, 2.1e9, 5.3e12, 2048, 64, False)),
    ],
)
def test_devices_are_described_by_what_the_driver_reports(
    fields: dict[str, Any], expected: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties(**fields))
    gpu_cost.describe.cache_clear()
    assert gpu_cost.describe(torch.device("cuda", 0)) == expected
    gpu_cost.describe.cache_clear()


def test_a_prediction_must_promise_three_tenths_more_speed() -> None:
    assert gpu_cost.Estimate(dense=1.31, triton=1.0).backend == "triton"
    assert gpu_cost.Estimate(dense=1.29, triton=1.0).backend == "dense"


def test_of_unknown_architectures_nothing_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties(major=99, minor=0))
    gpu_cost.describe.cache_clear()
    unknown = gpu_cost.describe(torch.device("cuda", 0))
    gpu_cost.describe.cache_clear()
    assert gpu_cost.estimate(call(), unknown) is None


# Tables ---------------------------------------------------------------------------------------------


def row(k: int = 9, channels: int = 64, size: int = 56, pass_name: str = "forward", **fields: Any) -> dict[str, Any]:
    ms, dense_ms = fields.get("ms", 1.0), fields.get("dense_ms", 4.0)
    return {
        "kernel_size": k, "channels": channels, "size": size, "batch": 64, "dtype": "bfloat16", "pass": pass_name,
        "ms": ms, "dense_ms": dense_ms, "speedup_vs_dense": dense_ms / ms, "fraction_of_floor": 0.5,
    } | fields  # fmt: skip


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A function that writes what was measured on an H100, the one GPU that the planner sees."""

    def keep(*rows: dict[str, Any]) -> None:
        measurements.write(measurements.path_in(tmp_path, H100.name), rows=rows)
        forget()

    def forget() -> None:
        gpu_tables._load.cache_clear()
        plan._planned.cache_clear()

    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(gpu_cost, "describe", lambda device: H100)
    monkeypatch.setattr(plan.triton, "refusal", lambda call: None)
    forget()
    yield keep
    forget()


def test_without_a_table_the_model_decides(measure: Callable[..., None]) -> None:
    chosen = plan_call(call(), "auto")
    assert chosen.backend == "triton"
    assert chosen.reason.startswith("predicted")
    assert "with Triton against" in chosen.reason
    assert plan_call(call(3), "auto").backend == "dense"
    assert plan_call(call(groups=64), "auto") == plan.Plan("dense", "no prediction of Triton's speed")


def test_a_table_replaces_the_model(measure: Callable[..., None]) -> None:
    measure(row(9, dense_ms=0.8), row(3, dense_ms=1.5))
    assert plan_call(call(9), "auto").backend == "dense"
    chosen = plan_call(call(3), "auto")
    assert chosen.backend == "triton"
    assert "measured on this GPU: Triton at 1.5 times" in chosen.reason
    assert plan_call(call(5), "auto").reason.startswith("predicted"), "no row is like it"


def test_what_was_measured_hardly_faster_is_left_to_the_dense_path(measure: Callable[..., None]) -> None:
    measure(row(9, dense_ms=1.09), row(3, dense_ms=1.11))
    assert plan_call(call(9), "auto").backend == "dense"
    assert plan_call(call(3), "auto").backend == "triton"


def test_the_nearest_row_counts(measure: Callable[..., None]) -> None:
    measure(row(channels=64), row(channels=128, dense_ms=0.5), row(channels=64, size=14, batch=1024, dense_ms=0.5))
    assert plan_call(call(9, 64), "auto").backend == "triton"
    assert plan_call(call(9, 96, 128), "auto").backend == "dense"
    assert plan_call(call(9, 64, size=16, batch=2048), "auto").backend == "dense"


@pytest.mark.parametrize(
    "unlike",
    [
        call(9, 256), call(9, 64, size=200), call(9, batch=4), call(stride=2), call(groups=2), call(antialias=True),
        call(dtype=torch.float16), call(kind="transpose"),
    ],
    ids=["channels", "size", "work", "stride", "groups", "antialias", "dtype", "pass"],
)  # fmt: skip
def test_rows_unlike_the_call_do_not_count(unlike: Call, measure: Callable[..., None]) -> None:
    measure(row())
    assert "measured" not in plan_call(unlike, "auto").reason


def test_a_wrong_result_is_never_chosen(measure: Callable[..., None]) -> None:
    measure(row(speedup_vs_dense=None))
    assert plan_call(call(), "auto").backend == "dense"


def test_the_backward_pass_is_the_step_less_the_forward(measure: Callable[..., None]) -> None:
    measure(row(ms=1.0, dense_ms=4.0), row(pass_name="step", ms=3.0, dense_ms=5.0))
    assert "0.5 times" in plan_call(call(kind="backward"), "auto").reason
    assert plan_call(call(kind="backward"), "auto").backend == "dense"


def test_a_row_of_another_dtype(measure: Callable[..., None]) -> None:
    measure(row(dense_ms=0.5, dtype="float16"))
    assert plan_call(call(), "auto").backend == "triton"
    assert plan_call(call(dtype=torch.float16), "auto").backend == "dense"


@pytest.mark.parametrize("content", ['{"rows": [{}]}', '{"rows": 3}'])
def test_broken_rows_are_named_and_ignored(content: str, measure: Callable[..., None], tmp_path: Path) -> None:
    measurements.path_in(tmp_path, H100.name).write_text('{"format": 1, ' + content[1:])
    with pytest.warns(RuntimeWarning, match=r"gpu-.*H100.*\.json .* is ignored"):
        assert plan_call(call(), "auto").reason.startswith("predicted")


# Refusals -------------------------------------------------------------------------------------------


def test_what_triton_refuses_goes_dense_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    plan._planned.cache_clear()
    chosen = plan_call(call(dtype=torch.float64), "auto")
    assert chosen.backend == "dense"
    assert "not with Triton" in chosen.reason
    plan._planned.cache_clear()


def test_without_triton_everything_goes_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(plan.triton, "_launchers", missing)
    plan._planned.cache_clear()
    assert plan_call(call(), "auto").backend == "dense"
    assert "No module named 'triton'" in plan_call(call(), "auto").reason
    plan._planned.cache_clear()
