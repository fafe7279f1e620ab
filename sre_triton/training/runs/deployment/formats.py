"""The formats of exported networks: how each is written, and opened by its own runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sre_triton.training.runs.deployment.program import Program, Run

__all__ = ["FORMATS", "INPUT", "METADATA", "OUTPUT", "Format"]

METADATA = "sre_triton"
"""Name under which each format keeps the metadata, as JSON."""
INPUT, OUTPUT = "image", "probabilities"

_EXTRA_FILE = f"{METADATA}.json"


class Format(NamedTuple):
    """A format.

    Attributes:
        suffix: ending of its files.
        write: writes a program with its metadata to a path of this ending.
        open: what runs such a file, and its metadata.
        step: of image sizes that it takes, or the largest divisor of this that divides the training's.
    """

    suffix: str
    write: Callable[[Program, Path, str], None]
    open: Callable[[Path, torch.device], tuple[Run, str]]
    step: int = 1


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the remarks of exporters about packages that are not there and interfaces that grow old."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _write_onnx(program: Program, path: Path, metadata: str) -> None:
    import onnx_ir
    import onnxscript  # noqa: F401 - torch.onnx asks for it late, and in other words

    with _quietly():
        written = torch.onnx.export(
            program.recorded, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
        )
    assert written is not None
    model = written.model
    space = ("depth", "height", "width")[2 - program.examples[0].dim() :]
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        sizes = ("batch", int(value.shape[1]), *space)[: len(value.shape)]  # type: ignore[arg-type]
        value.shape = onnx_ir.Shape(sizes)
    model.metadata_props[METADATA] = metadata
    written.save(path)


def _open_onnx(path: Path, device: torch.device) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: image.cpu().numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map[METADATA]


def _write_torchscript(program: Program, path: Path, metadata: str) -> None:
    with _quietly():
        script = torch.jit.trace(program.whole, (program.examples[0],), check_trace=False)
        torch.jit.save(script, path, _extra_files={_EXTRA_FILE: metadata})


def _open_torchscript(path: Path, device: torch.device) -> tuple[Run, str]:
    extra: dict[str, Any] = {_EXTRA_FILE: ""}
    with _quietly():
        script = torch.jit.load(path, map_location=device, _extra_files=extra)
    return script, extra[_EXTRA_FILE].decode()


def _write_pt2(program: Program, path: Path, metadata: str) -> None:
    with _quietly():
        torch.export.save(program.recorded, path, extra_files={_EXTRA_FILE: metadata})


def _open_pt2(path: Path, device: torch.device) -> tuple[Run, str]:
    extra = {_EXTRA_FILE: ""}
    with _quietly():
        program = torch.export.load(path, extra_files=extra)
    return program.module(), extra[_EXTRA_FILE]


def _write_aoti(program: Program, path: Path, metadata: str) -> None:
    with _quietly():
        torch._inductor.aoti_compile_and_package(
            program.recorded,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {METADATA: metadata}},
        )


def _open_aoti(path: Path, device: torch.device) -> tuple[Run, str]:
    with _quietly():
        package = torch._inductor.aoti_load_package(str(path))
    found: dict[str, str] = package.get_metadata()
    return package, found[METADATA]


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", _write_onnx, _open_onnx),
    "torchscript": Format(".pt", _write_torchscript, _open_torchscript),
    "pt2": Format(".pt2", _write_pt2, _open_pt2),
    # Its code generator works strides out in symbols: of roundings within roundings this takes many minutes.
    "aoti": Format(".aoti.pt2", _write_aoti, _open_aoti, step=16),
}
