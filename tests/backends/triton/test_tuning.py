"""Searching for launch options: when it happens, what it tries, and what is kept on disk."""

from __future__ import annotations

import dataclasses
import json
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sre_triton
from sre_triton.backends.triton import launch, tiles, tuning
from sre_triton.backends.triton.prepared import forward_problem
from sre_triton.backends.triton.tiles import Tile
from tests.backends.triton.cases import Layer, assert_accurate, dense_backward, dense_forward
from tests.backends.triton.test_tiles import problem

NEEDS_INTERPRETER = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter takes no time of its own")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of its own for each test, and nothing remembered from before."""
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SRE_TRITON_AUTOTUNE", raising=False)
    tuning._table.cache_clear()
    yield tmp_path
    tuning._table.cache_clear()


@pytest.fixture
def some_gpu(monkeypatch: pytest.MonkeyPatch) -> tiles.Problem:
    """A problem on a GPU with a name, outside the interpreter."""
    monkeypatch.setattr(tuning.triton.knobs.runtime, "interpret", False)
    case = problem(9, 128, 128)
    return dataclasses.replace(case, device=dataclasses.replace(case.device, name="Some GPU"))


class Bench:
    """Runs calls and says that those of one choice of options are the fastest."""

    def __init__(self, favourite: Any = None) -> None:
        self.favourite, self.options, self.compiled = favourite, [], []  # type: ignore[var-annotated]

    def run(self, options: Any, warmup: bool) -> Any:
        (self.compiled if warmup else self.options).append(options)

    def timer(self, call: Callable[[], object]) -> float:
        call()
        return 1.0 if self.options[-1] == self.favourite else 2.0


def binary(shared: int = 0, tensor_memory: int = 0, spills: int = 0) -> types.SimpleNamespace:
    metadata = types.SimpleNamespace(shared=shared, tmem_size=tensor_memory)
    return types.SimpleNamespace(metadata=metadata, n_spills=spills, _init_handles=lambda: None)


def test_without_a_request_nothing_is_tried(some_gpu: tiles.Problem) -> None:
    bench = Bench()
    assert tuning.choose("forward", some_gpu, bench.run) == tiles.forward_tile(some_gpu)
    assert not bench.compiled + bench.options


@pytest.mark.parametrize("kind", list(tuning._SPACES))
def test_a_search_tries_every_candidate_and_is_kept(kind: str, some_gpu: tiles.Problem, cache: Path) -> None:
    case = some_gpu
    if kind == "narrow_grad":
        case = dataclasses.replace(problem(5, 1, 1, groups=64), device=some_gpu.device)
    wanted = tuning._candidates(kind, case)[3]
    bench = Bench(wanted)
    with tuning.searching(bench.timer) as search:
        assert tuning.choose(kind, case, bench.run) == wanted
        assert tuning.choose(kind, case, bench.run) == wanted
    assert bench.options == tuning._candidates(kind, case), "each is timed once"
    (result,) = search.found
    assert (result.kernel, result.milliseconds, result.rule_milliseconds) == (kind, 1.0, 2.0)
    assert (result.tried, result.pruned) == (len(bench.options), 0)
    tuning._table.cache_clear()
    assert tuning.choose(kind, case, bench.run) == wanted, "not found on disk"
    assert len(bench.options) == result.tried
    (path,) = cache.iterdir()
    assert path.name == "gpu-Some-GPU.json"


def test_the_search_is_over_blocks_warps_and_stages(some_gpu: tiles.Problem) -> None:
    for kind in ("forward", "product"):
        candidates = tuning._candidates(kind, some_gpu)
        assert candidates[0] == tuning._rule(kind, some_gpu)
        for field in dataclasses.fields(candidates[0]):
            if field.name != "sums":  # another rounding is another result
                assert len({getattr(options, field.name) for options in candidates}) > 1, field.name
    assert {tile.sums for tile in tuning._candidates("forward", some_gpu)} == {"packed"}


def test_what_overflows_or_spills_is_not_timed(some_gpu: tiles.Problem) -> None:
    first, *others = tuning._candidates("forward", some_gpu)
    bad = [binary(shared=some_gpu.device.shared_bytes + 1), binary(tensor_memory=513), binary(spills=4)]
    compiled = dict(zip(others, bad, strict=False))
    timed = []

    def run(tile: Tile, warmup: bool) -> Any:
        if warmup and tile == others[-1]:
            raise tuning.triton.runtime.errors.OutOfResources(1, 0, "registers")
        if not warmup:
            timed.append(tile)
        return compiled.get(tile, binary())

    def timer(call: Callable[[], object]) -> float:
        call()
        return 1.0

    with tuning.searching(timer) as search:
        tuning.choose("forward", some_gpu, run)
    assert timed == [first, *others[3:-1]]
    assert search.found[0].pruned == 4


def test_where_nothing_runs_the_rule_holds_and_nothing_is_kept(some_gpu: tiles.Problem, cache: Path) -> None:
    with tuning.searching(lambda call: 1.0) as search:
        chosen = tuning.choose("forward", some_gpu, lambda tile, warmup: binary(spills=1))
    assert chosen == tiles.forward_tile(some_gpu)
    assert not search.found
    assert not list(cache.iterdir())


def test_a_new_batch_size_does_not_search_again(some_gpu: tiles.Problem) -> None:
    bench = Bench()
    with tuning.searching(bench.timer):
        tuning.choose("forward", some_gpu, bench.run)
        count = len(bench.options)
        for batch in (1, 31, 33, 1000):
            tuning.choose("forward", dataclasses.replace(some_gpu, batch=batch), bench.run)
        assert len(bench.options) == count
        tuning.choose("forward", dataclasses.replace(some_gpu, height=some_gpu.height * 2), bench.run)
        assert len(bench.options) > count


def test_keys_tell_kernels_layouts_and_dtypes_apart() -> None:
    cases = [
        problem(), problem(7), problem(antialias=True), problem(stride=2), problem(dilation=2), problem(c_in=32),
        problem(c_out=32), problem(groups=2), problem(dtype=torch.float16), problem(size=(14, 14)),
    ]  # fmt: skip
    keys = {tuning.bucket("forward", case) for case in cases} | {tuning.bucket("writer", cases[0])}
    assert len(keys) == len(cases) + 1


def test_a_change_of_the_kernels_forgets_results(some_gpu: tiles.Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tuning._candidates("forward", some_gpu)[2])
    with tuning.searching(bench.timer):
        chosen = tuning.choose("forward", some_gpu, bench.run)
    assert chosen != tiles.forward_tile(some_gpu)
    monkeypatch.setattr(tuning, "_source_hash", lambda: "other")
    tuning.bucket.cache_clear()
    assert tuning.choose("forward", some_gpu, bench.run) == tiles.forward_tile(some_gpu)
    tuning.bucket.cache_clear()


def test_force_measures_again_but_once(some_gpu: tiles.Problem) -> None:
    bench = Bench()
    for _ in range(2):
        with tuning.searching(bench.timer, force=True):
            for _ in range(2):
                tuning.choose("forward", some_gpu, bench.run)
    assert len(bench.options) == 2 * len(tuning._candidates("forward", some_gpu))


def test_the_environment_asks_too(some_gpu: tiles.Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tuning._candidates("forward", some_gpu)[2])
    monkeypatch.setattr(tuning, "_time_on_gpu", bench.timer)
    monkeypatch.setenv("SRE_TRITON_AUTOTUNE", "0")
    assert tuning.choose("forward", some_gpu, bench.run) == tiles.forward_tile(some_gpu)
    monkeypatch.setenv("SRE_TRITON_AUTOTUNE", "1")
    assert tuning.choose("forward", some_gpu, bench.run) == bench.favourite


def test_a_search_reaches_the_threads_of_the_backward_pass(some_gpu: tiles.Problem) -> None:
    bench = Bench()
    with tuning.searching(bench.timer):
        thread = threading.Thread(target=tuning.choose, args=("forward", some_gpu, bench.run))
        thread.start()
        thread.join()
    assert bench.options


# The file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"format": 0, "launch_options": {}}', '{"format": 1, "launch_options": {"forward x": 3}}',
     '{"format": 1, "launch_options": {"forward x": {"rows": 1}}}', '{"format": 1, "launch_options": {"x": {}}}'],
)  # fmt: skip
def test_a_corrupt_file_is_named_ignored_and_replaced(content: str, some_gpu: tiles.Problem, cache: Path) -> None:
    path = cache / "gpu-Some-GPU.json"
    path.write_text(content)
    bench = Bench()
    with pytest.warns(RuntimeWarning, match=r"gpu-Some-GPU\.json .* is ignored"):
        assert tuning.choose("forward", some_gpu, bench.run) == tiles.forward_tile(some_gpu)
    with pytest.warns(RuntimeWarning, match="is ignored"), tuning.searching(bench.timer):
        tuning.choose("forward", some_gpu, bench.run)
    assert len(json.loads(path.read_text())["launch_options"]) == 1


def test_processes_add_to_one_file_and_leave_no_drafts(some_gpu: tiles.Problem, cache: Path) -> None:
    cases = [some_gpu, dataclasses.replace(some_gpu, c_in=64)]
    for case in cases:
        tuning._keep("Some GPU", {tuning.bucket("forward", case): tuning._candidates("forward", case)[1]})
    (path,) = cache.iterdir()
    assert len(json.loads(path.read_text())["launch_options"]) == 2
    for case in cases:
        assert tuning.choose("forward", case, Bench().run) == tuning._candidates("forward", case)[1]


def test_a_folder_that_cannot_be_written_costs_a_warning(
    some_gpu: tiles.Problem, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(cache / "file"))
    bench = Bench(tuning._candidates("forward", some_gpu)[1])
    with pytest.warns(RuntimeWarning), tuning.searching(bench.timer):
        assert tuning.choose("forward", some_gpu, bench.run) == bench.favourite


# With the kernels -----------------------------------------------------------------------------------


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates besides the rule's choice: interpreting takes its time."""
    for space in tuning._SPACES.values():
        listed = getattr(space.module, space.candidates)
        monkeypatch.setattr(space.module, space.candidates, lambda case, listed=listed: listed(case)[:2])


@NEEDS_INTERPRETER
@pytest.mark.parametrize("groups", [1, 8])
def test_searching_with_the_kernels_changes_no_result(
    groups: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch)
    layer = Layer(c_in=16, c_out=16, groups=groups, size=(3, 4), batch=1)
    x, weight, bias, grad_y = layer.tensors(device)
    with tuning.searching(lambda call: (call(), 1.0)[1]) as search:
        y = launch.forward(x, weight, bias, layer.spec)
        grad_x, grad_w = launch.backward(grad_y, x, weight, layer.spec)
    assert_accurate(y, *dense_forward(layer, x, weight, bias))
    for result, expected in zip((grad_x, grad_w), dense_backward(layer, grad_y, x, weight), strict=True):
        assert_accurate(result, *expected)
    kernels = {"forward", "narrow_grad"} if groups == 8 else {"forward", "writer", "product"}
    assert {result.kernel for result in search.found} == kernels


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = sre_triton.SREConv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.conv(x)))


@NEEDS_INTERPRETER
def test_tuning_a_model_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    few(monkeypatch)
    net, x = Net(), torch.randn(1, 16, 5, 6)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    found = sre_triton.tune(net, x, timer=lambda call: (call(), 1.0)[1])
    assert {result.kernel for result in found} == {"forward", "writer", "product"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert (cache / "gpu-interpreter.json").exists()
    timed: list[Any] = []
    assert sre_triton.tune(net, torch.randn(3, 16, 5, 6), timer=lambda call: timed.append(call) or 1.0) == []
    assert not timed, "a new batch size was tuned again"
    x.requires_grad_()
    assert sre_triton.tune(net.requires_grad_(False), x, timer=lambda call: 1.0) == [], (
        "no parameter asks for a gradient"
    )


@NEEDS_INTERPRETER
def test_the_tuned_tile_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch, launched: list[Any]) -> None:
    few(monkeypatch)
    net, x = Net().eval(), torch.randn(1, 16, 5, 6)
    turn = iter(range(100, 0, -1))  # the last candidate wins
    (result,) = sre_triton.tune(net, x, backward=False, timer=lambda call: (call(), float(next(turn)))[1])
    assert (
        result.options
        != tuning._candidates("forward", forward_problem(x, net.conv.weight, Layer(c_in=16, c_out=16).spec))[0]
    )
    launched.clear()
    with sre_triton.backend("triton"), torch.no_grad():
        net(x)
    assert [(start.options["R"], start.options["BM"]) for start in launched] == [
        (result.options.rows, result.options.columns)
    ]


def test_a_model_on_the_cpu_cannot_be_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"tune\(\) times kernels on a GPU: .* got cpu"):
        sre_triton.tune(Net(), torch.randn(1, 16, 5, 6))
    monkeypatch.setattr(tuning.triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match=r"got cpu$"):
        sre_triton.tune(Net(), torch.randn(1, 16, 5, 6), timer=lambda call: 1.0)
    with pytest.raises(RuntimeError, match="got no device"):
        sre_triton.tune(nn.Identity())
