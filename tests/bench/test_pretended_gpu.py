"""The pretended GPU, each time in a process of its own: it cannot be taken back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import pretended_gpu
from bench.pretended_gpu.faults import KINDS, Fault

ROOT = Path(__file__).parents[2]
OPERANDS = """
import torch, sre_triton
from sre_triton.backends import dense, triton
from sre_triton.geometry.conv import conv_spec
spec = conv_spec(2, 5, 3, True, False, (1, 1), (2, 2), (1, 1), 1)
x = torch.randn(2, 16, 9, 9, device="cuda").to(memory_format=torch.channels_last)
weight = torch.randn(16, 16, 3, device="cuda")
assert x.is_cuda and x.device == torch.device("cuda", 0)
"""


def run(mode: str, code: str, *faults: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | pretended_gpu.environment(mode, faults)
    command = [sys.executable, "-c", OPERANDS + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_dense_mode_gives_right_results_to_every_caller() -> None:
    done = run(
        "dense",
        """
weight.requires_grad_()
torch.testing.assert_close(triton.forward(x, weight, None, spec), dense.forward(x, weight, None, spec))
layer = sre_triton.SREConv2d(16, 16, 5, padding=2, device="cuda")
results = []
for name in ("triton", "dense"):
    with sre_triton.backend(name), torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.bfloat16
    results.append((y, *torch.autograd.grad(y.float().sum(), layer.weight)))
for ours, theirs in zip(*results):
    torch.testing.assert_close(ours, theirs)
kernel = triton.expand(weight, spec.geometry)
assert torch.equal(kernel[0, 0, 2, 2], weight[0, 0, 0]), "the centre is the first ring"
assert float(kernel[0, 0, 0, 0]) == 0, "corners are dropped"
torch.testing.assert_close(triton.collapse(kernel, spec.geometry)[..., 0], weight[..., 0])
""",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_noop_mode_compiles_binds_and_launches() -> None:
    """A result that nothing wrote is what its memory held; the real launcher went all the way to the driver."""
    done = run(
        "noop",
        """
from triton.runtime.jit import JITFunction
run, compiled = JITFunction.run, []
JITFunction.run = lambda *args, **options: compiled.append(run(*args, **options)) or compiled[-1]
y = triton.forward(x, weight, None, spec)
assert y.shape == x.shape and y.device == x.device
assert [kernel.metadata.target.arch for kernel in compiled] == [90]
assert compiled[0].asm["cubin"]
""",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_tests_that_need_a_gpu_run(tmp_path: Path) -> None:
    """All that can pass without one: no graph is replayed here, no kernel profiled, none timed."""
    needs_more = "graphs or two_kernels or share or tuning"
    command = ["-m", "pytest", "tests/backends/triton/test_cuda.py", "-q", "-k", f"not ({needs_more})"]
    environment = os.environ | pretended_gpu.environment("dense") | {"SRE_TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_faults_strike_where_they_are_told_to() -> None:
    fault = Fault.parse("die@transpose:9@table")
    assert fault == Fault("die", "transpose", 9, "table")
    assert not fault.strikes(9), "this process has another name"
    assert Fault.parse("zeros@forward").strikes(5)
    assert not Fault.parse("zeros@forward:9").strikes(5)


@pytest.mark.parametrize("text", ["", "die", "explode@forward", "die@", "die@forward:large"])
def test_unknown_faults_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a fault is kind@launcher"):
        Fault.parse(text)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="mode must be one of dense, noop, got 'quiet'"):
        pretended_gpu.environment("quiet")


def test_injected_faults_happen() -> None:
    done = run(
        "dense",
        """
assert triton.forward(x, weight, None, spec).eq(0).all()
assert all(g.eq(0).all() for g in triton.backward(x, x, weight, spec))
triton.weight_grad(x, x, spec)  # a kernel's own fault shows later
for call in (torch.cuda.synchronize, lambda: torch.zeros(1), lambda: triton.forward(x, weight, None, spec)):
    try:
        call()
    except RuntimeError as error:
        assert "illegal memory access" in str(error)
    else:
        raise AssertionError("the context works on")
triton.transpose(x, weight, None, spec, (0, 0))
""",
        "zeros@forward",
        "zeros@backward:5",
        "sticky@weight_grad",
        "die@transpose:3",
    )
    assert "illegal memory access" in done.stderr, "transpose meets the broken context"
    assert {"hang", "die", "sticky", "zeros", "unwritten"} <= set(KINDS)
