"""Where a folded network runs: an AOTInductor package, an ONNX graph, exported programs of several sizes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sre_triton import convert, fold
from tests.small_networks import ResidualNet

pytestmark = [
    pytest.mark.swap,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def folded() -> Any:
    return fold(convert(ResidualNet(), kernel_size=5).eval(), fuse_batchnorm=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler, and there is no g++")
def test_aot_inductor_package(folded: Any, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 23, 30)
    program = torch.export.export(folded, (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    with torch.no_grad():
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), folded(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 24), (23, 30)])
def test_onnx_of_even_and_odd_sizes(folded: Any, size: tuple[int, int], tmp_path: Path) -> None:
    import onnxruntime

    x = torch.randn(2, 3, *size)
    torch.onnx.export(folded, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(result), folded(x), rtol=1e-4, atol=1e-5)
