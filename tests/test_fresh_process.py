"""What holds in a process that has only just started: imports, a missing Triton, compile as the first call, fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import sre_triton
from tests.oracle import BACKENDS


def run(script: str, timeout: float = 300, **environment: str) -> str:
    """Standard output of a script in a new process."""
    package_parent = str(Path(sre_triton.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_import_is_light() -> None:
    run("""
        import sys
        import torch
        before = set(sys.modules)
        import sre_triton
        added = {name.partition(".")[0] for name in set(sys.modules) - before}
        assert "sre_triton" in added
        heavy = {"triton", "scipy", "matplotlib", "skimage", "torchvision", "pandas"}
        assert not added & heavy, added & heavy
        assert "torch._dynamo" not in set(sys.modules) - before
        assert "torch._inductor" not in set(sys.modules) - before
        assert not torch.cuda.is_initialized()
        assert torch.get_default_dtype() == torch.float32
    """)


def test_the_first_calls_stay_light() -> None:
    run("""
        import sys
        import torch
        import sre_triton
        layer = sre_triton.SREConv2d(16, 16, 5)
        for backend in ("auto", "dense", "ringwise"):
            with sre_triton.backend(backend):
                layer(torch.randn(1, 16, 24, 24)).sum().backward()
        sre_triton.explain(layer, torch.randn(1, 16, 24, 24))
        assert not {"triton", "scipy", "matplotlib"} & set(sys.modules)
        assert not torch.cuda.is_initialized()
    """)


@pytest.mark.slow  # a machine's speed
def test_the_import_takes_little_longer_than_that_of_torch() -> None:
    seconds = run("""
        import time
        import torch
        start = time.process_time()
        import sre_triton
        print(time.process_time() - start)
    """)
    assert float(seconds) < 0.5


BLOCK_TRITON = """
    import sys
    class WithoutTriton:
        # Finds what another finder does, but no Triton: as if it were not installed.
        def __init__(self, finder):
            self.finder = finder
        def find_spec(self, name, path=None, target=None):
            return None if name.partition(".")[0] == "triton" else self.finder.find_spec(name, path, target)
        def __getattr__(self, name):
            return getattr(self.finder, name)
    sys.meta_path[:] = [WithoutTriton(finder) for finder in sys.meta_path]
    try:
        import triton
    except ImportError:
        pass
    else:
        raise AssertionError("Triton is found all the same")
    import torch
    import sre_triton
    layer = sre_triton.SREConv2d(8, 8, 5, padding=2)
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
"""


def test_everything_runs_without_triton() -> None:
    run(
        BLOCK_TRITON
        + """
    for backend in ("auto", "dense", "ringwise"):
        with sre_triton.backend(backend):
            layer(x).sum().backward()
    with sre_triton.backend("triton"):
        try:
            layer(x)
        except RuntimeError as error:
            assert "'triton' was requested" in str(error)
        else:
            raise AssertionError("an explicit request fell back")
    eager = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), eager)
    compiled(x).sum().backward()
    """
    )


def test_compiling_may_be_the_first_call() -> None:
    run("""
        import torch
        import sre_triton
        net = torch.nn.Sequential(sre_triton.SREConv2d(3, 8, 5, padding=2), sre_triton.GMRConv2d(8, 4, 3))
        x = torch.randn(2, 3, 12, 12, requires_grad=True)
        y = torch.compile(net, fullgraph=True)(x)
        y.sum().backward()
        grads = [x.grad, *[p.grad for p in net.parameters()]]
        expected = torch.autograd.grad(net(x).sum(), [x, *net.parameters()])
        torch.testing.assert_close(y, net(x))
        for got, want in zip(grads, expected):
            torch.testing.assert_close(got, want)
    """)


def test_exporting_may_be_the_first_call() -> None:
    run("""
        import torch
        import sre_triton
        program = torch.export.export(sre_triton.SREConv2d(3, 8, 5), (torch.randn(2, 3, 12, 12),))
        assert "sre_triton.ring_conv.default" in program.graph_module.code
    """)


def test_an_exported_program_loads_where_the_package_is_imported() -> None:
    run("""
        import io, subprocess, sys, tempfile, torch
        import sre_triton
        layer = sre_triton.SREConv2d(3, 8, 5)
        x = torch.ones(1, 3, 9, 9)
        with tempfile.TemporaryDirectory() as folder:
            torch.export.save(torch.export.export(layer, (x,)), folder + "/layer.pt2")
            code = (
                "import sys, torch, sre_triton;"
                "y = torch.export.load(sys.argv[1]).module()(torch.ones(1, 3, 9, 9));"
                "print(y.double().sum().item())"
            )
            out = subprocess.run([sys.executable, "-c", code, folder + "/layer.pt2"], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        assert abs(float(out.stdout) - layer(x).double().sum().item()) < 1e-3
    """)


def test_forked_workers_run_and_share_weights() -> None:
    """DataLoader workers and Hogwild training fork after the import, and after a first call."""
    run("""
        import torch
        import torch.multiprocessing as multiprocessing
        import sre_triton

        torch.set_num_threads(1)  # an OpenMP pool does not survive a fork, whoever uses it

        class Data(torch.utils.data.Dataset):
            layer = sre_triton.SREConv2d(16, 16, 5, padding=2)
            def __len__(self):
                return 4
            def __getitem__(self, i):
                with torch.no_grad():
                    return self.layer(torch.full((16, 24, 24), float(i)))

        data = Data()
        expected = torch.stack([data[i] for i in range(4)])
        loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
        torch.testing.assert_close(torch.cat(list(loader)), expected)

        def train(layer):
            layer(torch.ones(1, 4, 8, 8)).sum().backward()
            with torch.no_grad():
                layer.weight.zero_()

        layer = sre_triton.SREConv2d(4, 4, 3).share_memory()
        assert layer.weight.is_shared()
        worker = multiprocessing.get_context("fork").Process(target=train, args=(layer,))
        worker.start()
        worker.join(120)
        assert worker.exitcode == 0
        assert torch.equal(layer.weight, torch.zeros_like(layer.weight))
    """)


def test_no_memory_is_read_before_it_is_written() -> None:
    """Under glibc's MALLOC_PERTURB_ fresh memory holds numbers too large to be missed."""
    run(
        f"""
        import torch
        import sre_triton
        for size in ((2, 2, 2), (3, 9, 9), (9, 4, 9), (1, 1, 1), (9, 9, 3)):
            for kernel_size, stride in ((3, 1), (5, 1), (5, 2)):
                layer = sre_triton.SREConv3d(16, 16, kernel_size, stride, kernel_size // 2, bias=False)
                x = torch.randn(2, 16, *size)
                for backend in {BACKENDS}:
                    with sre_triton.backend(backend):
                        expected = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
                        with torch.autocast("cpu", torch.bfloat16):
                            y = layer(x)
                        actual = torch.autograd.grad(y.sum(), layer.weight)[0]
                    torch.testing.assert_close(actual, expected, rtol=0, atol=0.02 * expected.abs().max().item())
        """,
        MALLOC_PERTURB_="128",
    )
