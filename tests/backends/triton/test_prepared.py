"""What is worked out once per kind of call holds for every call that finds it; Triton itself launches the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from bench import pretended_gpu
from sre_triton.backends import dense
from sre_triton.backends.triton import launch
from sre_triton.backends.triton.prepared import Kept, are_aligned
from sre_triton.geometry.conv import conv_spec
from tests.backends.triton.cases import FORMATS

F16 = torch.float16
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def test_the_store_is_bounded_and_forgets_the_oldest() -> None:
    kept = Kept(limit=3)
    for key in range(10):
        kept.keep(key, str(key))
    assert len(kept) == 3
    assert [kept.get(key) for key in range(6, 10)] == [None, "7", "8", "9"]
    kept.clear()
    assert len(kept) == 0
    assert kept.get(9) is None


def test_alignment_is_that_of_sixteen_bytes() -> None:
    assert are_aligned([0, 16, None, 4096])
    for offset in (1, 2, 4, 8, 12):
        assert not are_aligned([16, 32 + offset])


def random_view(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Random numbers of this shape: contiguous, channels_last, with gaps, with the first two axes exchanged in memory,
    or at an odd address."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    kind = int(torch.randint(5, (), generator=generator))
    if kind == 1 and len(shape) > 3:
        return draw(*shape).contiguous(memory_format=FORMATS[len(shape) - 2])
    if kind == 2:
        return draw(*shape[:-1], 2 * shape[-1])[..., ::2]
    if kind == 3:
        return draw(shape[1], shape[0], *shape[2:]).transpose(0, 1)
    if kind == 4:
        return draw(1 + torch.Size(shape).numel())[1:].view(shape)
    return draw(*shape)


@pytest.mark.parametrize("seed", range(3))
def test_one_convolution_on_all_kinds_of_tensors(seed: int, device: torch.device) -> None:
    """Every call twice, the second from the store, between calls of other shapes, strides and dtypes."""
    generator = torch.Generator().manual_seed(seed)
    groups = (1, 1, 4)[seed]
    spec = conv_spec(2, 3, 2, True, False, (1 + seed % 2,) * 2, (1, 1), (1, 1), groups)
    weight_shape, calls = (8, 4 // groups, 2), []
    for batch, height, width, dtype in (
        (1, 3, 4, torch.float32), (2, 1, 5, torch.float32), (1, 1, 1, F16), (0, 3, 4, torch.float32), (2, 4, 3, F16),
    ):  # fmt: skip
        x = random_view((batch, 4, height, width), dtype, generator, device)
        weight = random_view(weight_shape, dtype, generator, device)
        bias = [None, torch.randn(16, generator=generator).to(device, dtype)[::2]][batch % 2]
        grad_y = random_view((batch, 8, *spec.output_size((height, width))), dtype, generator, device)
        calls.append((x, weight, bias, grad_y))
    for x, weight, bias, grad_y in (*calls, *calls):
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if x.dtype == F16 else {"rtol": 1e-4, "atol": 1e-4}
        bias64 = None if bias is None else bias.double()
        expected = dense.forward(x.double(), weight.double(), bias64, spec)
        torch.testing.assert_close(launch.forward(x, weight, bias, spec).double(), expected, **tolerance)
        if x.numel():
            truth = dense.backward(grad_y.double(), x.double(), weight.double(), spec)
            for ours, theirs in zip(launch.backward(grad_y, x, weight, spec), truth, strict=True):
                torch.testing.assert_close(ours.double(), theirs, **tolerance)


def test_what_is_recorded_or_searched_is_not_kept(device: torch.device) -> None:
    spec = conv_spec(2, 1, 1, True, False, (1, 1), (0, 0), (1, 1), 1)
    x, weight = torch.ones(1, 4, 2, 2, device=device), torch.ones(4, 4, 1, device=device)
    with launch.tuning.searching(lambda call: 1.0):
        launch.forward(x, weight, None, spec)
    assert len(launch._PLANS) == 0
    launch.forward(x, weight, None, spec)
    launch.forward(x, weight, None, spec)
    assert len(launch._PLANS) == 1
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not before)
    try:
        launch.forward(x, weight, None, spec)
    finally:
        torch.use_deterministic_algorithms(before)
    assert len(launch._PLANS) == 2


# The real launcher, into a driver that does nothing -----------------------------------------------------

WATCHED = """
import torch
from triton import knobs
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime.jit import JITFunction
from sre_triton.backends.triton import launch
from sre_triton.backends.triton.prepared import Launch
from sre_triton.geometry.conv import conv_spec
from sre_triton.geometry.rings import ring_geometry

reached = []  # what the driver was told
start, run = CudaLauncher.__call__, JITFunction.run

def told(self, x, y, z, stream, function, *rest):
    arguments = [a.data_ptr() if hasattr(a, "data_ptr") else a for a in rest[-len(names):]]
    reached.append((id(self), x, y, z, stream, function, arguments))
    return start(self, x, y, z, stream, function, *rest)

def both(self, *tensors):
    global names
    names = self.kernel.arg_names
    plain(self, *tensors)
    ours = reached[-1]
    run(self.kernel, *tensors, *self.sizes, grid=self.grid, warmup=False, **self.options)
    assert ours == reached[-1], (self.kernel, ours, reached[-1])

plain = Launch.__call__
"""


def run_pretended(code: str) -> str:
    command = [sys.executable, "-c", WATCHED + code]
    environment = os.environ | pretended_gpu.environment("noop")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPARED = """
CudaLauncher.__call__, Launch.__call__ = told, both
geometry = ring_geometry((3, 3))
for shape in ((4, 4, 2), (1, 1, 2), (16, 1, 2), (3, 5, 2)):
    for dtype in (torch.float32, torch.bfloat16):
        for offset in (0, 1, 8):
            memory = torch.zeros(4096, dtype=dtype, device="cuda")
            weight = memory[offset:offset + torch.Size(shape).numel()].view(shape)
            for _ in range(3):
                launch.expand(weight, geometry)
print(len(reached))
"""


@needs_compiler
def test_what_reaches_the_driver_is_what_triton_sends() -> None:
    """Sizes of one and of sixteen, and addresses of every alignment, which Triton compiles kernels of their own for."""
    assert int(run_pretended(COMPARED)) == 2 * 4 * 2 * 3 * 3


CONVOLUTIONS = """
CudaLauncher.__call__, Launch.__call__ = told, both
generator = torch.Generator().manual_seed(0)
def pick(*choices): return choices[int(torch.randint(len(choices), (), generator=generator))]
for _ in range(12):
    k, groups = pick(1, 3), pick(1, 1, 16)
    spec = conv_spec(2, k, k // 2 + 1, True, False, (pick(1, 2),) * 2, (k // 2,) * 2, (1, 1), groups)
    dtype, n, c, h, w = pick(torch.bfloat16, torch.float16), pick(1, 2), pick(16, 48), pick(1, 8, 9), pick(1, 5, 16)
    memory = torch.zeros(2**18, dtype=dtype, device="cuda")
    offset = pick(0, 0, 8, 1)
    x = memory[offset:offset + n * c * h * w].view(n, h, w, c).permute(0, 3, 1, 2)
    x = x if pick(0, 1) else x.contiguous()
    weight = torch.zeros(c, c // groups, k // 2 + 1, dtype=dtype, device="cuda")
    for _ in range(3):
        y = launch.forward(x, weight, None, spec)
        launch.backward(y, x, weight, spec)
print(len(reached))
"""


@needs_compiler
@pytest.mark.exhaustive
def test_what_reaches_the_driver_of_random_convolutions() -> None:
    assert int(run_pretended(CONVOLUTIONS)) > 100


SEEN = """
geometry = ring_geometry((3, 3))
weight = torch.zeros(4, 4, 2, device="cuda")
launch.expand(weight, geometry)

import sre_triton.private_api as private
count = [0]
direct = private.CompiledLaunch.__call__
def counting(self, *arguments):
    count[0] += 1
    return direct(self, *arguments)
private.CompiledLaunch.__call__ = counting
def is_direct():
    before = count[0]
    launch.expand(weight, geometry)
    return count[0] - before == 1
assert is_direct()

seen = []
hook = lambda metadata: seen.append(metadata.get()["name"])
for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
    chain.add(hook)
    assert not is_direct() and seen.pop() == "ring_expand_kernel"
    chain.remove(hook)
    assert is_direct()
knobs.runtime.launch_enter_hook, chain = hook, knobs.runtime.launch_enter_hook
assert not is_direct() and seen.pop() == "ring_expand_kernel"
knobs.runtime.launch_enter_hook = None
assert is_direct()
knobs.runtime.launch_enter_hook = chain

from sre_triton.backends.triton.dense_kernels import ring_expand_kernel
ring_expand_kernel.add_pre_run_hook(lambda *arguments, **options: seen.append("before"))
assert not is_direct() and seen.pop() == "before"
ring_expand_kernel.pre_run_hooks.clear()
assert is_direct()

JITFunction.run = lambda self, *arguments, **options: seen.append(self.__name__)
assert not is_direct() and seen.pop() == "ring_expand_kernel"
JITFunction.run = run
assert is_direct()

knobs.runtime.debug = True
assert not is_direct()
knobs.runtime.debug = False
assert is_direct()

launch.forget()  # a Triton whose launchers take other arguments
private._jit = None
CudaLauncher.__call__ = lambda self, grid, *arguments, **options: None
launch.expand(weight, geometry)
assert not is_direct() and not is_direct()
CudaLauncher.__call__ = start
launch.forget()
launch.expand(weight, geometry)
assert is_direct()

del torch._C._cuda_getCurrentRawStream  # a PyTorch without it: no direct launch
from sre_triton.private_api import CompiledLaunch
assert CompiledLaunch.of(ring_expand_kernel, None) is None
"""


@needs_compiler
def test_whoever_wants_to_see_launches_sees_them() -> None:
    """Hooks, whoever puts a `run` of his own in Triton's place, and a Triton that is not as assumed."""
    run_pretended(SEEN)
