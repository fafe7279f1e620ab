"""What a network looks at while its input turns: maps turned back, their places, the film, and what is said of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from sre_triton.layers import SREConv2d
from sre_triton.training.evaluation import visualize
from sre_triton.training.evaluation.turned_maps import turned_maps
from sre_triton.training.evaluation.visualize import visualize_image
from sre_triton.training.figures.film import Act, write_film
from sre_triton.training.figures.maps import overlay
from sre_triton.training.options import SegmentOptions, TrainOptions, VisualizeOptions
from sre_triton.training.runs.predictor import Predictor
from tests.training.conftest import TINY, TINY_UNET

CLASSES = ["cat", "dog", "cow"]


class Classifier(nn.Module):
    """Says "dog" of what is bright: its last layer passes brightness on, once with each sign."""

    def __init__(self) -> None:
        super().__init__()
        self.look = SREConv2d(3, 4, 3, padding=1)
        self.judge = nn.Linear(4, 3)
        with torch.no_grad():
            self.look.weight.fill_(0.1)
            self.look.bias.fill_(3.0)
            self.judge.weight.copy_(torch.tensor([0.0, 1.0, -1.0])[:, None].expand(3, 4))
            self.judge.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.judge(self.look(x).relu().mean(dim=(2, 3)))


class Segmenter(nn.Module):
    """Finds what is brighter than half."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 4, 3, padding=1)
        self.judge = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.look.weight.zero_()
            self.look.weight[:, :, 1, 1] = 1 / 3
            self.look.bias.fill_(0.0)
            self.judge.weight.copy_(torch.tensor([-10.0, 10.0])[:, None, None, None].expand(2, 4, 1, 1))
            self.judge.bias.copy_(torch.tensor([20.0, -20.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.judge(self.look(x))


def _classifier(model_type: str = "sre_resnet18", **about: Any) -> Predictor:
    content = {"classes": 3, "class_names": CLASSES, "channels": 3, "ndim": 2, **about}
    return Predictor(Classifier().eval(), content, TrainOptions(model_type=model_type, medmnist_size=64))


def _segmenter(model_type: str = "sre_unet") -> Predictor:
    content = {"classes": 2, "mask_values": [0, 255], "channels": 3, "ndim": 2, "threshold": None}
    return Predictor(Segmenter().eval(), content, SegmentOptions(model_type=model_type))


def _spot(height: int = 64, width: int = 64) -> torch.Tensor:
    """A picture (1, 3, H, W) with a bright spot right of its middle, above."""
    picture = torch.full((1, 3, height, width), 0.1)
    picture[..., height // 4 : height // 4 + 6, 5 * width // 8 : 5 * width // 8 + 6] = 0.9
    return picture


def _save(picture: torch.Tensor, path: Path) -> Path:
    Image.fromarray((255 * picture[0].movedim(0, -1)).round().to(torch.uint8).numpy()).save(path)
    return path


def _asked(**options: Any) -> VisualizeOptions:
    return VisualizeOptions(quiet=True, **{"step_degrees": 45.0, "channels": 2, **options})


@pytest.mark.parametrize("build", [_classifier, _segmenter])
def test_grad_cam_is_high_where_the_network_looks(build: Callable[[], Predictor]) -> None:
    """At every angle, turned back; the largest relevance is the largest number."""
    found = turned_maps(build(), _spot(), _asked(target_class=1))
    for cam in found.cams:
        down, across = divmod(int(cam.argmax()), 64)
        assert 15 <= down <= 22
        assert 39 <= across <= 46
    assert found.cams[:, 32, 20].max() < 0.5 * found.cams.amax()
    assert found.layer == "look"
    assert found.channels == (0, 1)


def test_answers_are_those_of_the_predictor() -> None:
    picture = _spot()
    for predictor in (_classifier(), _classifier(multi_label=True)):
        found = turned_maps(predictor, picture, _asked())
        expected = predictor.probabilities(picture[0])
        assert found.outputs[0].numpy() == pytest.approx(expected)
        assert found.target == expected.argmax()
        assert found.scores == pytest.approx(found.outputs[:, found.target].tolist())
    segmented = turned_maps(_segmenter(), picture, _asked())
    assert segmented.found is not None
    assert (segmented.found[0].numpy() == _segmenter().found(_segmenter().probabilities(picture[0]))).all()
    assert segmented.scores[0] == segmented.scores[2] == 1  # upright, and a quarter turn of the same
    assert segmented.target == 1


def test_a_layer_that_is_not_there_names_those_like_it() -> None:
    with pytest.raises(ValueError, match=r"--layer 'lok': the network has no such layer; among its \d+ are .*look"):
        turned_maps(_classifier(), _spot(), _asked(layer="lok"))


def test_options_out_of_range_are_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="--channels must be at least"):
        turned_maps(_classifier(), _spot(), _asked(channels=-1))


def test_a_layer_without_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--layer 'judge' must give maps \(N, C, H, W\), it gives \(1, 3\)"):
        turned_maps(_classifier(), _spot(), _asked(layer="judge"))


def test_what_was_outside_the_frame_is_known() -> None:
    found = turned_maps(_segmenter(), _spot(40, 64), _asked())
    assert found.upright.shape == (3, 40, 64)  # the aspect is kept
    assert found.inputs.shape == (8, 3, 64, 64)
    at = dict(zip(found.angles, found.inside, strict=True))
    assert at[0].all()
    assert at[90].all()  # in its square frame it is turned whole
    assert at[45][20, 32]
    assert not at[45][0, 0]
    assert not at[45][20, 0]
    middle = found.middle()
    assert middle[20, 32]
    assert not middle[20, 1]
    assert found.spread(found.cams).isnan()[0, 0]


@pytest.mark.parametrize(
    ("build", "padding", "corner"),
    [
        (_classifier, "zeros", 0.5),
        (_segmenter, "zeros", 0.0),
        (_classifier, "reflect", 0.1),
        (_segmenter, "reflect", 0.1),
    ],
)
def test_corners_are_those_of_the_rotation_test(build: Callable[[], Predictor], padding: str, corner: float) -> None:
    """Zeros are black for a segmentation, which is standardised later, and mid-grey for a classifier."""
    found = turned_maps(build(), _spot(), _asked(padding=padding))
    assert found.inputs[1, :, 0, 0].tolist() == pytest.approx([corner] * 3, abs=1e-6)


def test_masks_score_a_segmentation() -> None:
    picture = _spot()
    truth = (picture[0, 0] > 0.5).long()
    assert turned_maps(_segmenter(), picture, _asked(), truth).scores[0] == 1
    truth[16:22, 40:43] = 0  # half of the spot
    found = turned_maps(_segmenter(), picture, _asked(), truth)
    assert found.scores[0] == pytest.approx(2 * 18 / (18 + 36))


def test_overlays_tell_right_from_missed_and_wrong() -> None:
    found, truth = np.array([[0, 1, 1, 0]]), np.array([[0, 1, 0, 1]])
    colours = overlay(np.zeros((1, 4, 3)), found, truth)[0].tolist()
    assert colours[0] == [0, 0, 0]
    assert len({tuple(colour) for colour in colours}) == 4
    red = np.tile([0.9, 0.0, 0.0], (1, 4, 1))
    assert overlay(red, found, truth)[0, 0].tolist() == [round(255 * 0.3)] * 3  # grey, so that marks stand out
    assert overlay(red, found)[0, 0].tolist() == [230, 0, 0]
    plain = overlay(np.zeros((1, 4, 3)), np.array([[0, 1, 2, 7]]))[0].tolist()
    assert plain[1] == plain[3] != plain[2]  # six colours, then from the first on again


def _visualize(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    networks: dict[str, Predictor],
    picture: torch.Tensor,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Runs the command with these networks in place of checkpoints; what it writes and says."""
    monkeypatch.setattr(visualize, "load", lambda path, device: networks[path.name])
    paths = [Path(name) for name in networks]
    chosen = _asked(
        checkpoint=paths[0], against=paths[1] if len(paths) > 1 else None, output=tmp_path / "out", **options
    )
    console = Console(width=1000, record=True, quiet=False, file=(tmp_path / "said").open("w"))
    visualize_image(_save(picture, tmp_path / "picture.png"), chosen, console)
    return json.loads((tmp_path / "out" / "visualization.json").read_text()), console.export_text()


def test_grad_cam_that_is_zero_everywhere_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    networks = {"run": _classifier()}
    content, said = _visualize(monkeypatch, tmp_path, networks, _spot(), target_class=2, film="none", step_degrees=90.0)
    assert "Grad-CAM of class cow is zero everywhere: nothing in layer look speaks for it" in said
    assert "0.000" not in said.partition("Grad-CAM")[2].partition(";")[0]
    (network,) = content["networks"]
    assert network["grad_cam_is_zero"] is True
    assert network["grad_cam_deviation"] is None
    assert network["class"] == "cow"
    assert not (tmp_path / "out" / "turning.gif").exists()


def test_two_networks_share_a_film(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    networks = {"ring": _segmenter(), "plain": _segmenter("unet")}
    mask = _save((_spot() > 0.5).float(), tmp_path / "mask.png")
    options = {"mask": mask, "step_degrees": 90.0, "figure_format": "svg", "channels": 1}
    content, said = _visualize(monkeypatch, tmp_path, networks, _spot(), **options)
    assert [network["network"] for network in content["networks"]] == ["sre_unet", "unet"]
    assert [network["scores"][0] for network in content["networks"]] == [100, 100]
    assert "unet: Dice 100.0 to 100.0 % over 4 angles" in said
    names = {"turning.svg", "kernels.svg", "profiles.svg", "turning.gif", "visualization.json"}
    against = {f"{name}-against.svg" for name in ("turning", "kernels", "profiles")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | against
    with Image.open(tmp_path / "out" / "turning.gif") as film:
        assert film.n_frames == 4
        assert film.info["loop"] == 0
        assert film.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        assert film.width > 2.5 * film.height / 2  # three pictures side by side


def test_networks_that_cannot_be_compared_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--against must know the classes .* cat, dog, cow of classification"):
        _visualize(monkeypatch, tmp_path, {"a": _classifier(), "b": _segmenter()}, _spot())
    with pytest.raises(ValueError, match="--mask is for segmentations"):
        _visualize(monkeypatch, tmp_path, {"a": _classifier()}, _spot(), mask=tmp_path / "mask.png")
    mask = _save(_spot(32, 32), tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"none of the classes 0, 255"):
        _visualize(monkeypatch, tmp_path, {"a": _segmenter()}, _spot(), mask=mask)
    mask = _save((_spot(32, 32) > 0.5).float(), tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"--mask must be of the picture's size \(64, 64\), got \(32, 32\)"):
        _visualize(monkeypatch, tmp_path, {"a": _segmenter()}, _spot(), mask=mask)
    assert not (tmp_path / "out").exists()


def _film(path: Path) -> None:
    frames = np.zeros((3, 20, 30, 3), np.uint8)
    write_film(
        path, [0, 120, 240], frames, [Act("ring", frames, [90, 91, 92], notes=[["a"], ["b"], ["c"]])], "Dice", seconds=3
    )


def test_films_of_other_formats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'film\.avi'"):
        _film(tmp_path / "film.avi")
    _film(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.info["duration"] == 1000
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--film mp4 needs imageio's ffmpeg: pip install 'sre-triton\[film\]'"):
        _film(tmp_path / "film.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]


def test_films_as_mp4(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    _film(tmp_path / "film.mp4")
    about, *frames = imageio_ffmpeg.read_frames(tmp_path / "film.mp4")
    assert about["duration"] == pytest.approx(3, abs=0.1)
    assert len(frames) == 3
    assert min(frames[0][:300]) > 250  # the ground


def test_what_is_wrong_is_named(sre: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sre("visualize", tmp_path / "missing.png", "--checkpoint", tmp_path / "no run") == 2
    assert "missing.png" in capsys.readouterr().err
    _save(_spot(), tmp_path / "picture.png")
    assert sre("visualize", tmp_path / "picture.png", "--checkpoint", tmp_path / "no run") == 2
    assert "no run" in capsys.readouterr().err
    for step in ("0", "-10", "7"):
        assert sre("visualize", tmp_path / "picture.png", "--checkpoint", "vessels", "--step-degrees", step) == 2
        assert "--step-degrees" in capsys.readouterr().err
    for name, value in (("--layer", "nothing"), ("--target-class", "2"), ("--channels", "-1"), ("--size", "-1")):
        assert sre("visualize", tmp_path / "picture.png", "--checkpoint", "vessels", "--size", "32", name, value) == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["train", "segment"])
def test_visualize_turns_the_maps_back(
    kind: str, make_set: Callable[..., Path], sre: Callable[..., int], tmp_path: Path
) -> None:
    from skimage.data import retina

    make_set("tiny")
    Image.fromarray(retina()[::16, ::16]).save(tmp_path / "image.png")
    arguments = [*TINY, "--med-mnist", "tiny"] if kind == "train" else TINY_UNET
    assert sre(kind, *arguments, "--epochs", "1") == 0
    (run,) = (tmp_path / "logs" / "task").iterdir()
    output = tmp_path / "visualization"
    arguments = ["--checkpoint", run, "--output", output, "--step-degrees", "90", "--size", "32", "--channels", "1"]
    assert sre("visualize", tmp_path / "image.png", *arguments) == 0
    for name in ("turning.png", "turning.gif", "kernels.png", "profiles.png"):
        assert (output / name).stat().st_size > 0
    with Image.open(output / "turning.gif") as picture:
        assert picture.n_frames == 4
    found = json.loads((output / "visualization.json").read_text())
    # Quarter turns of a ring network: the maps turned back are the same maps.
    assert max(found["networks"][0]["feature_map_deviation"]) < 1e-3
    assert max(found["networks"][0]["output_deviation"]) < 1e-4
    assert sre("visualize", tmp_path / "image.png", *arguments, "--layer", "nothing") == 2
    (tmp_path / "image.png").write_bytes(b"no picture")
    assert sre("visualize", tmp_path / "image.png", *arguments) == 2


def test_answers_show_what_the_mask_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was found and right, missed, and found wrongly have three colours."""
    shown: dict[str, Any] = {}
    monkeypatch.setattr(visualize, "draw_rows", lambda path, rows, *_: shown.update({row.label: row for row in rows}))
    truth = torch.zeros(1, 3, 64, 64)
    truth[..., 16:22, 43:60] = 1  # half of the spot, and more beside it
    mask = _save(truth, tmp_path / "mask.png")
    _visualize(monkeypatch, tmp_path, {"a": _segmenter()}, _spot(), mask=mask, film="none", step_degrees=90.0)
    answer = shown["answer"].pictures[0]
    colours = [tuple(answer[18, column]) for column in (41, 44, 55, 10)]
    assert len(set(colours)) == 4
    assert shown["answer"].titles[0] == f"{100 * 36 / (36 + 6 * 17):.1f} %"


def test_the_demo_shows_each_network_at_every_angle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sre_triton.training.evaluation import demo

    shown: dict[str, Any] = {}
    monkeypatch.setattr(demo, "draw_rows", lambda path, rows, headings, caption: shown.update(rows=rows, path=path))
    monkeypatch.setattr(
        demo, "write_film", lambda path, angles, turned, acts, score: shown.update(acts=acts, film=path)
    )
    probabilities = torch.zeros(36, 16, 16)
    probabilities[:, 6:10, 6:10] = 1
    probabilities[3, 6:10, 8:10] = 0  # at 30 degrees half of it is found
    demo._draw(tmp_path / "drawn.pdf", torch.rand(1, 3, 16, 16), {"rings": demo._Answers(probabilities, 0.5)})
    assert (shown["path"].name, shown["film"].name) == ("drawn.pdf", "drawn.gif")
    photographs, rings = shown["rows"]
    assert photographs.pictures.shape == (4, 16, 16, 3)
    assert rings.titles == ["100.0 %", f"{100 * 2 / 3:.1f} %", "100.0 %", "100.0 %"]
    (act,) = shown["acts"]
    assert act.frames.shape == (36, 16, 16, 3)
    assert act.scores[3] == pytest.approx(100 * 2 / 3)
