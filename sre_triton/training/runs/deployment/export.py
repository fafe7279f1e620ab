"""The command ``export``: a trained network as a file that runs without this package."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from sre_triton.training.files import require_writable
from sre_triton.training.options import ExportOptions, SegmentOptions, TrainOptions
from sre_triton.training.runs.deployment.formats import FORMATS, INPUT, OUTPUT, Format
from sre_triton.training.runs.deployment.program import Checked, Program, Whole, check, program_of
from sre_triton.training.runs.folder import first_line, folder_of
from sre_triton.training.runs.predictor import Predictor
from sre_triton.training.runs.restore import load_network
from sre_triton.training.tasks.registry import task_type

__all__ = ["Exported", "export"]


class Exported:
    """A file that was written.

    Attributes:
        path: of the file.
        checked: how its probabilities compare with the network's.
        step: every side of an image must be a multiple of this.
    """

    def __init__(self, path: Path, checked: Checked, step: int) -> None:
        self.path, self.checked, self.step = path, checked, step

    def __str__(self) -> str:
        sizes = "every image size" if self.step == 1 else f"sides that are multiples of {self.step}"
        return (
            f"{self.path}: {self.path.stat().st_size / 2**20:.1f} MB, for {sizes}; probabilities within "
            f"{self.checked.error:.1e} of the network's in float64 (allowed: {self.checked.allowed:.1e})"
        )


def export(run: Path, options: ExportOptions) -> Exported:
    """Writes the network of a run in another format, with its preprocessing, and checks the file in its own runtime.

    The file takes float32 images (N, C, *space) in 0 to 1 and gives probabilities (N, classes), or (N, classes,
    *space) of a segmentation; batch and image size are open, the size in steps of up to 16 pixels with AOTInductor.
    Scaling and normalisation are inside; what is not (a classifier's middle square, the windows of a segmentation), the
    classes and the threshold stand as JSON in its metadata, under the name ``sre_triton``.

    Raises:
        FileNotFoundError: there is no checkpoint, or no folder to write to.
        OSError: the folder cannot be written to.
        ValueError: the network cannot be exported, or the file's answers differ from the network's. Nothing is left
            then.
        ImportError: a package of the format is missing.
    """
    if options.format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {options.format!r}")
    if options.device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device")
    form = FORMATS[options.format]
    beside = folder_of(run) / "network" if run.exists() else Path(run.name)  # a pretrained one
    output = options.output or beside.with_name(beside.name + form.suffix)
    if not output.name.endswith(form.suffix):
        raise ValueError(f"--output {output} must end in {form.suffix} for --format {options.format}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}")
    require_writable(output.parent, "--output")
    network, about, run_options = load_network(run)
    assert isinstance(run_options, (TrainOptions, SegmentOptions))
    device = torch.device(options.device)
    original = Whole(network.to(device), run_options, bool(about.get("multi_label", False))).eval()
    side = task_type(run_options).input_shape(run_options, about)[-1]
    program = program_of(original, about["channels"], about["ndim"], side, math.gcd(side, form.step))
    metadata = json.dumps(_metadata(about, run_options, side, program), indent=2)
    # In a folder of its own: some writers want the file's ending, and put more files beside it.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        partial = Path(folder) / output.name
        checked = _write(form, partial, program, metadata, original, options.format)
        os.replace(partial, output)
    return Exported(output, checked, program.step)


def _write(form: Format, path: Path, program: Program, metadata: str, original: Whole, name: str) -> Checked:
    """Writes a file, opens it by its own runtime and checks what it says.

    Raises:
        ValueError: it cannot be written, or is not the network.
    """
    device = program.examples[0].device
    try:
        form.write(program, path, metadata)
        run, found = form.open(path, device)
        checked = check(run, original, program.examples)
    except (ImportError, OSError):
        raise
    except Exception as error:  # exporters and runtimes raise many kinds
        what = type(original.network).__name__
        raise ValueError(f"--format {name}: {what} cannot be exported: {first_line(error)}") from error
    if not checked.agrees or found != metadata:
        what = "metadata" if checked.agrees else "probabilities"
        raise ValueError(
            f"--format {name}: the file's {what} differ from the network's (by {checked.error:.1e}, "
            f"allowed {checked.allowed:.1e}): nothing was written"
        )
    return checked


def _metadata(
    about: dict[str, Any], options: TrainOptions | SegmentOptions, side: int, program: Program
) -> dict[str, Any]:
    """What one has to know to use the file."""
    from sre_triton import __version__

    space = ["depth", "height", "width"][-about["ndim"] :]
    predictor = Predictor(torch.nn.Identity(), about, options)
    described: dict[str, Any] = {
        "sre_triton": __version__,
        "task": options.task,
        "network": options.model_type,
        "data": about["data"],
        "classes": list(predictor.classes),
        "several_labels": predictor.several,
        "threshold": predictor.threshold,
        "input": {
            "name": INPUT,
            "layout": ["batch", "channels", *space],
            "type": "float32",
            "range": [0, 1],
            "channels": "RGB" if about["channels"] == 3 else about["channels"],
            "side_in_training": side,
            "multiple_of": program.step,
        },
        "output": {"name": OUTPUT, "layout": ["batch", "classes"]},
        "inside": ["(x - 0.5) / 0.5", "sigmoid" if predictor.several else "softmax"],
    }
    if isinstance(options, SegmentOptions):
        described["output"]["layout"] += space
        described["inside"][0] = f"normalise: {options.normalise}"
        described["windows"] = {"side": options.window_size or options.crop_size, "overlap": options.overlap}
    else:
        described["before"] = f"the middle square, resized to {side} pixels a side"
        if options.pad_size_h or options.pad_size_w:
            described["before"] += (
                f", centred in {options.pad_size_h or side} x {options.pad_size_w or side} pixels of 0.5"
                f" (padding: {options.padding})"
            )
    return described
