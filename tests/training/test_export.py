"""Exported networks give the answers of those that were trained, in each format's own runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sre_triton
from sre_triton import pooling
from sre_triton.conversion.any_size import for_any_size
from sre_triton.training.options import SegmentOptions, TrainOptions
from sre_triton.training.runs.deployment import export as command
from sre_triton.training.runs.deployment.formats import FORMATS, Format
from sre_triton.training.runs.deployment.program import Program, Whole, check, program_of
from sre_triton.training.runs.restore import load_network
from sre_triton.training.tasks.registry import task_type
from tests.training.conftest import Command

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SEGMENT = SegmentOptions(model_args='{"features": [2, 2], "sre_conv_size": 3}', normalise="field", crop_size=12)
VESSELS = {"data": "vessels", "classes": 2, "mask_values": [0, 255], "threshold": 0.4, "channels": 3, "ndim": 2}
TRAIN = TrainOptions(res_inplanes=4, sre_conv_size=3, maxpool=True)
LABELS = {"classes": 3, "class_names": ["a", "b", "c"], "channels": 1, "ndim": 2, "multi_label": True, "data": "zoo"}


def write_run(folder: Path, options: Any, about: dict[str, Any]) -> Path:
    """A run folder with a checkpoint of a network that nobody trained, its statistics as if somebody had."""
    from sre_triton.training.schema import to_dict

    torch.manual_seed(0)
    network = task_type(options).build_network(options, about)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    described = {"task": options.task, "options": to_dict(options), **about}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"sre_triton": described, "state_dict": state}, folder / "best.ckpt")
    return folder


def whole_of(run: Path) -> Whole:
    network, about, options = load_network(run)
    return Whole(network, options, bool(about.get("multi_label"))).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("export") / "run", SEGMENT, VESSELS)


@pytest.fixture(scope="module")
def program(run: Path) -> Program:
    return program_of(whole_of(run), 3, 2, 12)


@pytest.fixture
def recorded(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Spares each test the recording, which takes seconds."""
    monkeypatch.setattr(command, "program_of", lambda *_: program)
    return program


@pytest.mark.parametrize(
    "name",
    [
        "pt2",
        "torchscript",
        "onnx",
        pytest.param(
            "aoti",
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
        ),
    ],
)
def test_a_format_comes_back_with_its_answers_and_metadata(
    name: str, run: Path, recorded: Program, tmp_path: Path
) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    form = FORMATS[name]
    path = sre_triton.export(run, tmp_path / f"net{form.suffix}", format=name)
    assert [path] == list(tmp_path.iterdir())
    deployed, metadata = form.open(path, torch.device("cpu"))
    about = json.loads(metadata)
    assert (about["classes"], about["threshold"], about["task"]) == ([0, 255], 0.4, "segmentation")
    assert about["input"] == {
        "name": "image",
        "layout": ["batch", "channels", "height", "width"],
        "type": "float32",
        "range": [0, 1],
        "channels": "RGB",
        "side_in_training": 12,
        "multiple_of": 1,
    }
    assert about["inside"] == ["normalise: field", "softmax"]
    # What one gets from the package itself, at sizes that the export did not look at.
    predictor = sre_triton.load(run)
    predictor.options.window_size = 64
    for size in ((25, 32), (32, 25)):
        image = torch.rand(3, *size)
        expected = torch.from_numpy(predictor.probabilities(image))
        torch.testing.assert_close(deployed(image[None])[0], expected, atol=2e-5, rtol=0)


def test_a_classifier_says_its_labels_and_what_comes_before(tmp_path: Path, program: Program) -> None:
    run = write_run(tmp_path / "run", TRAIN, LABELS)
    network, about, options = load_network(run)
    about = command._metadata(about, options, 32, program)
    assert (about["several_labels"], about["threshold"], about["classes"]) == (True, 0.5, ["a", "b", "c"])
    assert about["inside"] == ["(x - 0.5) / 0.5", "sigmoid"]
    assert about["before"] == "the middle square, resized to 32 pixels a side"
    assert about["output"] == {"name": "probabilities", "layout": ["batch", "classes"]}
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(whole_of(run)(image), network(2 * image - 1).sigmoid())


@pytest.mark.slow  # to record it takes long
def test_a_classifier_is_exported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", TRAIN, LABELS)
    path = sre_triton.export(run, format="pt2")
    assert path == run / "network.pt2"
    deployed, metadata = FORMATS["pt2"].open(path, torch.device("cpu"))
    assert json.loads(metadata)["classes"] == ["a", "b", "c"]
    network, _, _ = load_network(run)
    image = torch.rand(3, 1, 32, 47)
    with torch.no_grad():
        torch.testing.assert_close(deployed(image), network(2 * image - 1).sigmoid(), atol=1e-5, rtol=0)


def test_what_differs_is_not_written(
    run: Path, recorded: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FORMATS["torchscript"]

    def opened(path: Path, device: torch.device) -> Any:
        deployed, metadata = honest.open(path, device)
        return lambda image: deployed(image) + 1e-4, metadata

    def fails(program: Program, path: Path, metadata: str) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("the exporter gives up\nin many lines")

    before = tmp_path / "net.pt"
    before.write_bytes(b"of yesterday")
    monkeypatch.setitem(FORMATS, "torchscript", Format(".pt", honest.write, opened))
    with pytest.raises(ValueError, match=r"torchscript: the file's probabilities differ from .*: nothing was written"):
        sre_triton.export(run, before, format="torchscript")
    monkeypatch.setitem(FORMATS, "torchscript", Format(".pt", fails, opened))
    with pytest.raises(ValueError, match=r"torchscript: SREUNet cannot be exported: the exporter gives up$"):
        sre_triton.export(run, before, format="torchscript")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net.pt", b"of yesterday")]


def test_the_check_sees_a_small_error_and_another_shape(run: Path, program: Program) -> None:
    original = whole_of(run)
    assert check(program.whole, original, program.examples).agrees
    assert not check(lambda image: program.whole(image) * (1 + 1e-4), original, program.examples).agrees
    assert not check(lambda image: program.whole(image)[..., :-1], original, program.examples).agrees
    assert not check(lambda image: program.whole(image) * float("nan"), original, program.examples).agrees


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--output", "net.pt"], r"--output net.pt must end in .onnx for --format onnx"),
        (["--output", "nowhere/net.onnx"], r"--output nowhere/net.onnx: there is no folder nowhere"),
        (["--device", "cuda"], "--device cuda: this machine has no CUDA device"),
    ],
)
def test_wrong_arguments_are_refused(
    sre: Command, run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert sre("export", run, *arguments) == 2
    assert capsys.readouterr().err == f"sre-triton export: {message}\n"


def test_the_compiled_format_takes_sizes_in_the_steps_of_the_training(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def recorded(*arguments: Any) -> Program:
        steps.append(arguments[-1])
        raise ValueError("not recorded")

    monkeypatch.setattr(command, "program_of", recorded)
    for name in ("pt2", "aoti"):
        with pytest.raises(ValueError, match="not recorded"):
            sre_triton.export(run, format=name)
    assert steps == [1, 4]  # its sides are 12


def test_a_program_of_steps_says_so(run: Path) -> None:
    program = program_of(whole_of(run), 3, 2, 12, 4)
    assert program.step == 4
    assert check(program.whole, whole_of(run), program.examples).agrees


def test_the_python_entry_names_what_it_cannot_take(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--format must be one of onnx, torchscript, pt2, aoti, got 'tflite'"):
        sre_triton.export(run, format="tflite")
    with pytest.raises(ValueError, match="--device must be cpu or cuda, got 'tpu'"):
        sre_triton.export(run, device="tpu")
    with pytest.raises(FileNotFoundError, match="none is missing: expected a checkpoint, a run folder"):
        sre_triton.export(tmp_path / "none")


@pytest.mark.parametrize("name", ["CenteredMaxPool", "CenteredAvgPool"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gathered_pooling_is_centred_pooling(name: str, stride: int) -> None:
    for ndim, reach in ((1, 0), (2, 1), (2, 4), (3, 0)):
        pool = getattr(pooling, f"{name}{ndim}d")(stride, reach=reach)
        gathered = for_any_size(nn.Sequential(pool))
        for n in range(reach + 1, reach + 8):
            x = torch.randn(2, 3, *range(n, n + ndim), dtype=torch.float64)
            torch.testing.assert_close(gathered(x), pool(x))


@pytest.mark.parametrize("is_folded", [True, False])
def test_onnx_of_centred_poolings_is_right_at_every_size(is_folded: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = nn.Sequential(pooling.CenteredMaxPool2d(2), pooling.CenteredAvgPool2d(2), nn.Flatten(2)).eval()
    exported = sre_triton.fold(network, any_size=True) if is_folded else network
    sizes = {"x": {0: "batch", 2: "height", 3: "width"}}
    path, example = tmp_path / "net.onnx", (torch.rand(2, 1, 8, 9),)
    torch.onnx.export(exported, example, path, input_names=["x"], dynamic_axes=sizes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for size in ((8, 9), (9, 8), (12, 15)):
        x = torch.rand(3, 1, *size)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), network(x))


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_of_rings_says_what_to_do(dynamo: bool, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    network = nn.Sequential(sre_triton.SREConv2d(1, 1, 3)).eval()
    with pytest.raises(RuntimeError, match=r"export what sre_triton.fold\(network.eval\(\), .*`sre-triton export RUN"):
        torch.onnx.export(network, (torch.rand(1, 1, 8, 8),), tmp_path / "net.onnx", dynamo=dynamo, verbose=False)
