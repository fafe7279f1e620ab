"""The native kernel: building and finding it, asking for it by name, and what the ring-wise tests do not reach."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sre_triton
from sre_triton.backends import dense, native
from sre_triton.backends.base import Call
from sre_triton.backends.native import library
from sre_triton.cli import main
from sre_triton.geometry.conv import conv_spec
from sre_triton.planning.plan import recording

needs_native = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
needs_compiler = pytest.mark.skipif(native.missing() is not None, reason="it could not be built here before")

ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "leaky_relu": lambda y: F.leaky_relu(y, 0.2)}

LAYER = """
import torch
import sre_triton
from sre_triton.backends import native
layer, x = sre_triton.SREConv2d(64, 64, 5, padding=2), torch.randn(2, 64, 32, 32)
def planned():
    return sre_triton.explain(layer, x).splitlines()[2].split()[1]
"""


def run(script: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new process with a cache folder of its own."""
    parent = str(Path(sre_triton.__file__).parent.parent)
    command = [sys.executable, "-c", script, *arguments] if script else [sys.executable, *arguments]
    variables = {**os.environ, "PYTHONPATH": parent, "SRE_TRITON_CACHE_DIR": str(folder), **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def output(script: str, folder: Path, **environment: str) -> list[str]:
    result = run(script, folder, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


# Building ---------------------------------------------------------------------------------------------


@needs_compiler
def test_it_is_built_once_and_found_from_then_on(tmp_path: Path) -> None:
    unoptimised = {"SRE_TRITON_NATIVE_OPTIONS": "-O0"}  # which compiles in a quarter of the time
    before, after = output(
        f"{LAYER}\nassert '`sre-triton build-native`' in native.missing()\nprint(planned())\n"
        "assert native.build().exists()\nassert native.missing() is None\nprint(planned())",
        tmp_path,
        **unoptimised,
    )
    assert (before, after) == ("ringwise", "native")
    (library,) = tmp_path.iterdir()
    stamp = library.stat().st_mtime_ns
    result = run("", tmp_path, "-m", "sre_triton", "build-native", CXX="/nowhere/c++", **unoptimised)
    assert result.stdout.strip() == str(library), "what is built needs no compiler"
    assert library.stat().st_mtime_ns == stamp
    assert output(f"{LAYER}\nprint(planned())", tmp_path, **unoptimised) == ["native"]


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_without_a_compiler_it_says_so_and_leaves_nothing(compiler: str, tmp_path: Path) -> None:
    result = run("", tmp_path, "-m", "sre_triton", "build-native", CXX=compiler)
    assert result.returncode == 2
    # A PyTorch for CUDA may say before that it sees no GPU.
    message = result.stderr.splitlines()[-1]
    assert message.startswith("sre-triton build-native: the native kernel cannot be built: ")
    assert compiler in message
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_to_is_named_with_the_variable_that_moves_it() -> None:
    result = run("", Path("/proc/none"), "-m", "sre_triton", "build-native")
    assert result.returncode == 2
    message = result.stderr.splitlines()[-1]
    assert "the native kernel cannot be built: cannot write to /proc/none: " in message
    assert message.endswith("the variable SRE_TRITON_CACHE_DIR names another folder")


@pytest.mark.parametrize(
    ("macros", "found"),
    [
        ({"__GNUC__": 11, "__GNUC_MINOR__": 4, "__GNUC_PATCHLEVEL__": 0}, "GCC 11.4.0"),
        ({"__GNUC__": 9, "__GNUC_MINOR__": 3, "__GNUC_PATCHLEVEL__": 1}, "GCC 9.3.1"),
        ({"__GNUC__": 12, "__GNUC_MINOR__": 1, "__GNUC_PATCHLEVEL__": 0}, None),
        ({"__GNUC__": 4, "__GNUC_MINOR__": 2, "__GNUC_PATCHLEVEL__": 1, "__clang__": 1}, None),
        ({"__GNUC__": 4, "__clang__": 1, "__clang_major__": 13, "__clang_minor__": 0}, "Clang 13.0"),
        ({"__GNUC__": 4, "__clang__": 1, "__clang_major__": 14, "__clang_minor__": 0}, None),
        ({"__clang__": 1, "__clang_major__": 13, "__apple_build_version__": 13160021}, None),
        ({"_MSC_VER": 1944}, None),
    ],
)
def test_a_compiler_that_is_too_old_is_named_with_its_version(
    macros: dict[str, int], found: str | None, tmp_path: Path
) -> None:
    compiler = tmp_path / "c++"
    lines = "".join(f"echo '#define {name} {value}'\n" for name, value in macros.items())
    compiler.write_text(f"#!/bin/sh\n{lines}")
    compiler.chmod(0o755)
    if found is None:
        library._check_version(str(compiler))
        return
    with pytest.raises(RuntimeError, match=f"is {re.escape(found)}; expected GCC 12 or newer, or Clang 14 or newer"):
        library._check_version(str(compiler))


def test_the_name_of_a_library_holds_compiler_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    names = set()
    for compiler in ("one", "two"):
        path = tmp_path / compiler
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        for options in ("", "-O1"):
            monkeypatch.setenv("CXX", str(path))
            monkeypatch.setenv("SRE_TRITON_NATIVE_OPTIONS", options)
            library._name.cache_clear()
            names.add(library._library())
    assert len(names) == 4
    (tmp_path / "cache").mkdir()
    for built in names:
        built.touch()
    # Where there is no compiler, what one has built there before; with these options.
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert library._library() in names
    monkeypatch.setenv("SRE_TRITON_NATIVE_OPTIONS", "-O2")
    library._name.cache_clear()
    assert not library._library().exists()
    library._name.cache_clear()


def test_users_without_the_kernel_are_told_once_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = nn.Sequential(sre_triton.SREConv2d(3, 4, 3), sre_triton.SREConv2d(4, 4, 3))
    x = torch.randn(1, 3, 8, 8)
    commands = (["models", "--filter", "sre_resnet18", "--no-time"], ["build-native", "--help"])

    def told() -> list[int]:
        texts = [sre_triton.explain(layers, x)]
        for command in commands:
            with contextlib.suppress(SystemExit):
                main(command)
            shown = capsys.readouterr()
            assert "sre_triton.build_native()" not in shown.out
            texts.append(shown.err)
        return [text.count("sre_triton.build_native()") for text in texts]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(library, "missing", lambda: "not built in this test")
    assert told() == [1, 1, 0]
    monkeypatch.setenv("SRE_TRITON_NATIVE", "0")
    assert told() == [0, 0, 0]
    monkeypatch.delenv("SRE_TRITON_NATIVE")
    monkeypatch.setattr(library, "missing", lambda: None)
    assert told() == [0, 0, 0]
    assert sre_triton.build_native is native.build


def test_a_broken_library_is_not_used(tmp_path: Path) -> None:
    name = output("from sre_triton.backends.native import library\nprint(library._library().name)", tmp_path)[0]
    (tmp_path / name).write_bytes(b"half a library")
    script = f"{LAYER}\nprint(planned())\nprint(native.missing())"
    path, reason = output(script, tmp_path)
    assert path == "ringwise"
    assert f"{tmp_path / name} cannot be loaded" in reason


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    script = f"""{LAYER}
assert native.missing() == "the variable SRE_TRITON_NATIVE is 0"
for call in (lambda: layer(x), native.build):
    try:
        with sre_triton.backend("native"):
            call()
    except RuntimeError as error:
        print(error)
print(planned())
"""
    for line in (lines := output(script, tmp_path, SRE_TRITON_NATIVE="0"))[:2]:
        assert "the variable SRE_TRITON_NATIVE is 0" in line
    assert lines[2:] == ["ringwise"]
    assert not list(tmp_path.iterdir())


def test_a_machine_without_a_home_folder_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    library.missing.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(library, "cache_directory", homeless)
        reason = native.missing()
    library.missing.cache_clear()
    assert reason == "it cannot be looked for: Could not determine home directory."


@needs_native
def test_tensors_of_another_type_are_refused() -> None:
    spec = conv_spec(2, 3, 2, True, False, (1, 1), (1, 1), (1, 1), 1)
    with pytest.raises(TypeError, match="must be of source's type Float, got Double"):
        native.forward(torch.randn(1, 4, 8, 8), torch.randn(4, 4, 2).double(), None, spec)


def test_what_it_cannot_run_on() -> None:
    spec = conv_spec(2, 3, 2, True, False, (1, 1), (1, 1), (1, 1), 1)
    call = Call("forward", spec, 1, 4, 4, (8, 8), torch.float32, torch.device("cuda"))
    assert "'cuda'" in (native.refusal(call) or "")
    assert "torch.int64" in (native.refusal(call._replace(device=torch.device("cpu"), dtype=torch.int64)) or "")


# Results ----------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("k", "channels", "size", "stride", "groups"),
    [
        (9, (16, 33), (150, 131), 1, 1),
        (5, (40, 24), (90, 64), 2, 1),
        (5, (16, 20), (20, 24, 27), 1, 2),
        (3, (32, 32), (15, 30, 31), 2, 1),
        (9, (8, 16), (5003,), 1, 1),
        (7, (3, 64), (5003,), 3, 1),
        (3, (192, 200), (20, 21), 1, 1),
        (5, (20, 20), (23, 53), 1, 20),
        (13, (6, 6), (30, 20), 1, 6),
        (7, (6, 6), (5, 9, 35), 1, 6),
        (9, (3, 20), (50, 70), 1, 1),
        (5, (2, 33), (90, 131), 2, 1),
        (3, (4, 5), (40, 16), 1, 1),
    ],
)
def test_images_of_many_tiles(
    k: int, channels: tuple[int, int], size: tuple[int, ...], stride: int, groups: int, channels_last: bool
) -> None:
    ndim = len(size)
    every = (1,) * ndim
    spec = conv_spec(ndim, k, k // 2 + 1, True, False, (stride,) * ndim, (k // 2,) * ndim, every, groups)
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0] // groups, k // 2 + 1, dtype=torch.float64)
    if channels_last and ndim > 1:
        x = x.contiguous(memory_format={2: torch.channels_last, 3: torch.channels_last_3d}[ndim])
    expected = dense.forward(x, weight, None, spec)
    torch.testing.assert_close(native.forward(x, weight, None, spec), expected, rtol=1e-11, atol=1e-11)
    grad_y = torch.randn_like(expected)
    grads, truth = (backend.backward(grad_y, x, weight, spec) for backend in (native, dense))
    for grad, true in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, true, rtol=1e-10, atol=1e-10)


@needs_native
@pytest.mark.parametrize(
    ("channels", "size", "groups"), [((34, 50), (61, 45), 1), ((36, 20), (41, 43), 2), ((64, 3), (5, 5), 1)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_gradients_are_as_near_as_outputs(
    channels: tuple[int, int], size: tuple[int, int], groups: int, layout: torch.memory_format
) -> None:
    """Pairs of positions are multiplied at once, also in tiles of an odd number of them."""
    spec = conv_spec(2, 5, 3, True, False, (1, 1), (2, 2), (1, 1), groups)
    x = torch.randn(3, channels[0], *size).bfloat16().to(memory_format=layout)
    grad_y = torch.randn(3, channels[1], *size).bfloat16().to(memory_format=layout)
    weight = torch.randn(channels[1], channels[0] // groups, 3).bfloat16()
    truth = dense.backward(grad_y.double(), x.double(), weight.double(), spec)
    alone = native.weight_grad(x, grad_y, spec)
    for grad, true in zip((*native.backward(grad_y, x, weight, spec), alone), (*truth, truth[1]), strict=True):
        # Ring sums and results are rounded once each, to within 2^-9.
        assert (grad.double() - true).norm() < 3e-3 * true.norm()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels", "size", "groups"),
    [((16, 36), (50, 47), 1), ((64, 32), (9, 30), 2), ((6, 6), (5, 5), 6), ((3, 40), (45, 67), 1)],
)
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_residual_and_activation(
    dtype: torch.dtype, layout: torch.memory_format, channels: tuple[int, int], size: tuple[int, int], groups: int,
    activation: str | None,
) -> None:  # fmt: skip
    spec = conv_spec(2, 3, 2, True, False, (1, 1), (1, 1), (1, 1), groups)
    x = torch.randn(2, channels[0], *size).to(dtype=dtype, memory_format=layout)
    residual = torch.randn(2, channels[1], *size).to(dtype)  # contiguous, whatever x is
    weight, bias = torch.randn(channels[1], channels[0] // groups, 2).to(dtype), torch.randn(channels[1]).to(dtype)
    truth = dense.forward(x.double(), weight.double(), bias.double(), spec) + residual.double()
    truth = ACTIVATIONS[activation](truth)
    y = native.fused_forward(
        x, weight, bias, spec, activation=activation, negative_slope=0.2, residual=residual
    )  # fmt: skip
    assert y.is_contiguous(memory_format=layout)
    assert (y.double() - truth).norm() < {torch.float32: 1e-6}.get(dtype, 4e-3) * truth.norm()
    y = native.fused_forward(x, weight, None, spec, activation=activation, negative_slope=0.2, residual=None)
    truth = dense.forward(x.double(), weight.double(), None, spec)
    truth = ACTIVATIONS[activation](truth)
    assert (y.double() - truth).norm() < {torch.float32: 1e-6}.get(dtype, 4e-3) * truth.norm()


@needs_native
def test_an_activation_keeps_what_is_no_number() -> None:
    spec = conv_spec(2, 1, 1, True, False, (1, 1), (0, 0), (1, 1), 1)
    x = torch.tensor([float("nan"), float("-inf"), float("inf"), -1.0]).reshape(1, 1, 2, 2)
    y = native.fused_forward(
        x, torch.ones(1, 1, 1), None, spec, activation="relu", negative_slope=0.0, residual=torch.zeros_like(x)
    )  # fmt: skip
    torch.testing.assert_close(y, F.relu(x), equal_nan=True)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_run_gives_the_same_bits(threads: int) -> None:
    spec = conv_spec(2, 5, 3, True, False, (1, 1), (2, 2), (1, 1), 1)
    x, weight = torch.randn(3, 32, 40, 40), torch.randn(48, 32, 3)
    alone = native.forward(x, weight, None, spec)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = [(native.forward(x, weight, None, spec), *native.backward(alone, x, weight, spec)) for _ in range(20)]
    finally:
        torch.set_num_threads(before)
    for results in runs:
        assert all(map(torch.equal, results, runs[0]))
        assert torch.equal(results[0], alone), "outputs do not depend on how many threads share them"


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_round_as_pytorch_does(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """One product each, which is exact in float32: of numbers and of what is none, in whole vectors and parts."""
    spec = conv_spec(2, 1, 1, True, False, (1, 1), (0, 0), (1, 1), 1)
    x = torch.randn(35, dtype=torch.float32)
    x[:6] = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e-40, 3e38, 0.0])
    x = x.to(dtype).view(1, 1, 5, 7)
    weight = torch.randn(40, 1, 1).to(dtype)
    y = native.forward(x.contiguous(memory_format=layout), weight, None, spec)
    expected = (x.float() * weight.float().view(1, 40, 1, 1)).to(dtype)
    torch.testing.assert_close(y.contiguous(), expected, rtol=0, atol=0, equal_nan=True)


@needs_native
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize(("k", "size"), [(9, 60), (9, 3), (35, 60)])
def test_weights_lie_in_memory_as_they_like(
    k: int, size: int, order: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    """Few rings, of which small maps lack some, and more than a vector holds; their gradients are contiguous."""
    spec = conv_spec(1, k, k // 2 + 1, True, False, (1,), (k // 2,), (1,), 2)
    x, grad_y = torch.randn(3, 44, size).to(dtype), torch.randn(3, 84, size).to(dtype)
    weight = torch.randn(84, 22, k // 2 + 1).to(dtype)
    weight = weight.permute(order).contiguous().permute([order.index(i) for i in range(3)])
    y, truth = (b.forward(t, w, None, spec) for b, t, w in ((native, x, weight), (dense, x.double(), weight.double())))
    grads = (y, *native.backward(grad_y, x, weight, spec), native.weight_grad(x, grad_y, spec))
    truths = dense.backward(grad_y.double(), x.double(), weight.double(), spec)
    for name, result, true in zip(("y", "x", "weight", "alone"), grads, (truth, *truths, truths[1]), strict=True):
        limit = tolerance * true.abs().max().item()
        torch.testing.assert_close(result.double(), true, rtol=0, atol=limit, msg=f"{name}: {{}}".format)


@needs_native
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "stride"), [(64, 64, 64, 1), (40, 40, 40, 2), (24, 40, 1, 1), (48, 24, 12, 2)]
)
def test_threads_do_not_meet(
    inputs: int, outputs: int, groups: int, stride: int, memory_format: torch.memory_format
) -> None:
    """Maps so large that threads are at work at the same time: of what one does to another, bits would tell."""
    spec = conv_spec(2, 5, 3, True, False, (stride,) * 2, (2, 2), (1, 1), groups)
    x, weight = torch.randn(3, inputs, 65, 49), torch.randn(outputs, inputs // groups, 3)
    x = x.contiguous(memory_format=memory_format)

    def call() -> list[torch.Tensor]:
        y = native.forward(x, weight, None, spec)
        fused = native.fused_forward(x, weight, None, spec, activation="relu", negative_slope=0.0, residual=y)
        return [y, fused, *native.backward(y, x, weight, spec)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = call()
        torch.set_num_threads(3)
        runs = [call() for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    for results in runs:
        assert all(map(torch.equal, results, runs[0]))
        assert all(map(torch.equal, results[:3], alone[:3]))
    truth = dense.forward(x.double(), weight.double(), None, spec)
    torch.testing.assert_close(alone[0].double(), truth, rtol=0, atol=1e-6 * truth.abs().max().item())


@needs_native
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_strided_adjoints_each_go_their_own_way(memory_format: torch.memory_format) -> None:
    """Of a stem the weight's gradient is planned native, the input's dense; asked for one backend, both take it."""
    layer = sre_triton.SREConv2d(3, 32, 3, 2, padding=1, bias=False)
    x = torch.randn(2, 3, 112, 112).contiguous(memory_format=memory_format).requires_grad_()
    y = layer(x)
    direction = torch.randn(y.shape).contiguous(memory_format=torch.contiguous_format)
    with recording() as records:
        found = torch.autograd.grad(y, [x, layer.weight], direction)
    assert [plan.backend for _, plan in records] == ["dense", "native"]
    with sre_triton.backend("dense"):
        expected = torch.autograd.grad(layer(x), [x, layer.weight], direction)
    assert found[0].stride() == x.stride()
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5 * truth.abs().max().item())
