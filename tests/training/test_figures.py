"""Figures: type that can be read, inside the frame, in every format, whatever the data are."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from sre_triton.training.figures import (
    confusion_matrix_figure,
    draw_angle_curves,
    draw_curves,
    draw_images,
    draw_kernels,
    draw_learning_curves,
    draw_profiles,
    drawing,
    film,
)
from sre_triton.training.figures.film import Act, write_film
from sre_triton.training.figures.maps import PictureRow, draw_rows
from sre_triton.training.figures.style import robust_limits

ANGLES = list(range(0, 360, 30))


def _rows(first_loss: float = 2.0, count: int = 6) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "lr": 0.1 / epoch,
            "train_loss": first_loss if epoch == 1 else 1 / epoch,
            "val_loss": 1.5 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "val_accuracy": 0.8 - 0.1 * abs(epoch - 4),
            "val_auc": 0.9,
        }
        for epoch in range(1, count + 1)
    ]


def _curve(level: float, axis: str = "x") -> tuple[str, list[int], list[float]]:
    return axis, ANGLES, [level + 0.05 * math.cos(math.radians(4 * angle)) for angle in ANGLES]


LONG = ["a class of a name that no axis has room for", "b", "c"]
FIGURES: dict[str, Callable[[Path], Any]] = {
    "curves": lambda path: draw_curves(path, _rows(), "val_accuracy", "patches, sre_resnet18, seed 1"),
    "one epoch": lambda path: draw_curves(path, _rows(count=1), "val_accuracy"),
    "rotation": lambda path: draw_angle_curves(
        path, {"rings": [_curve(0.8), _curve(0.82)], "plain": [_curve(0.7), _curve(0.6)]}, "accuracy", "n = 40 images"
    ),
    "rotation of volumes": lambda path: draw_angle_curves(path, {"rings": [_curve(0.8, a) for a in "xyz"]}, "auc"),
    "learning": lambda path: draw_learning_curves(
        path, {"sre_resnet18": [_rows(), _rows(3.0, 5)], "resnet18": [_rows(), _rows()]}, "val_accuracy", "patches"
    ),
    "batch": lambda path: draw_images(path, torch.rand(5, 3, 20, 30)),
    "named batch": lambda path: draw_images(
        path, torch.rand(9, 1, 8, 8), ["a rather long name", *"bcdefghi"], "x " * 99
    ),
    "kernels": lambda path: draw_kernels(path, np.ones((20, 5, 5)), "stem", "sre_resnet18"),
    "rows": lambda path: draw_rows(
        path,
        [
            PictureRow("input", np.zeros((2, 20, 30, 3), np.uint8)),
            PictureRow(
                "Grad-CAM:\nzero everywhere",
                -1e3 * np.ones((2, 20, 30)),
                ["100.0 %", "99.9 %"],
                (-2e3, 0),
                "activation",
                spread=1e-3 * np.ones((20, 30)),
                largest=2e-3,
            ),
        ],
        ["0°", "160°", "sd, 36 angles"],
        "fundus.png",
    ),
    "profile": lambda path: draw_profiles(path, np.ones((9, 3)), np.arange(4.0), "stem", is_steps=True),
    "taps": lambda path: draw_profiles(path, np.ones((2, 9)), np.arange(9.0), "stem", is_steps=False),
    "confusion": lambda path: confusion_matrix_figure(path, [[9, 1, 0], [0, 0, 0], [4, 5, 12_345_678]], LONG, "test"),
    "confusion of 60": lambda path: confusion_matrix_figure(path, np.eye(60, dtype=int), range(60)),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    figures: list[Figure] = []
    write = Figure.savefig

    def keep(self: Figure, *arguments: Any, **settings: Any) -> None:
        write(self, *arguments, **settings)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Text, Any]]:
    """The texts that are drawn, and where."""
    texts: list[tuple[Text, Any]] = []
    draw = Text.draw

    def keep(self: Text, renderer: Any) -> None:
        draw(self, renderer)
        if self.get_visible() and self.get_text().strip():
            texts.append((self, self.get_window_extent(renderer)))

    monkeypatch.setattr(Text, "draw", keep)
    return texts


def _assert_legible(texts: list[tuple[Text, Any]], width: float, height: float) -> None:
    """Texts have 7 points or more, are cut nowhere, and hide none."""
    assert all(text.get_fontsize() >= 7 for text, _ in texts)
    boxes = [box for _, box in texts]
    for box in boxes:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    for one, other in itertools.combinations(boxes, 2):
        across, down = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, down) <= 1, (
            f"two texts lie on each other: {[text.get_text() for text, box in texts if box in (one, other)]}"
        )


@pytest.mark.parametrize("name", FIGURES)
def test_type_is_legible_and_inside(
    name: str, drawn: list[Figure], written: list[tuple[Text, Any]], tmp_path: Path
) -> None:
    """At the width at which the figure is printed."""
    FIGURES[name](tmp_path / "figure.png")
    assert drawn
    for figure in drawn:
        assert figure.get_figwidth() <= 7.2001
        assert figure.get_figheight() <= 9.5
        written.clear()
        FigureCanvasAgg(figure).draw()
        assert written or name == "batch"
        _assert_legible(written, figure.bbox.width, figure.bbox.height)


@pytest.mark.parametrize("notes", [(), [[f"answer: {LONG[0]}", f"93.2 % for class {LONG[0]}"]]])
def test_type_of_films_is_legible(
    notes: list[list[str]], written: list[tuple[Text, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frames: list[Any] = []
    monkeypatch.setattr(film, "write_gif", lambda path, pictures, seconds: (path.touch(), frames.extend(pictures)))
    picture = np.zeros((1, 20, 30, 3), np.uint8)
    acts = [Act(f"a network of a long name ({name})", picture, [99.9], notes=notes) for name in ("seed-1", "seed-2")]
    write_film(tmp_path / "film.gif", [0], picture, acts, "Dice with the mask", "light grey: outside the frame")
    height, width = frames[0].shape[:2]
    assert width % 16 == height % 16 == 0
    assert len(written) > 10
    _assert_legible(written, width, height)


@pytest.mark.parametrize(("kind", "begin"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_formats_repeat_to_the_byte(kind: str, begin: bytes, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "other"):
        draw_profiles(tmp_path / f"{name}.{kind}", np.ones((2, 3)), np.arange(4.0), "stem", is_steps=True)
        contents.append((tmp_path / f"{name}.{kind}").read_bytes())
    assert contents[0].startswith(begin)
    assert contents[0] == contents[1]


def test_the_process_keeps_its_own_style(tmp_path: Path) -> None:
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    draw_images(tmp_path / "batch.png", torch.rand(2, 1, 8, 8))
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
    with pytest.raises(ValueError, match=r"'batch\.gif'"), drawing(tmp_path / "batch.gif", 1, 1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["batch.png"]


def test_a_loss_that_went_astray_does_not_flatten_the_rest(drawn: list[Figure], tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", _rows(first_loss=1e6), "val_accuracy")
    loss, score, rate = drawn[0].axes
    assert loss.get_ylim()[1] < 2
    assert "1e+06 in epoch 1" in loss.texts[0].get_text()
    assert score.get_ylabel() == "Score (%)"
    labels = [text.get_text() for text in score.get_legend().get_texts()]
    assert labels == ["training accuracy", "validation accuracy", "validation AUC", "best epoch: 4"]
    draw_curves(tmp_path / "curves.png", _rows(count=1), "val_accuracy")
    for axis in (loss, score, rate, *drawn.pop().axes):
        assert all(tick == int(tick) for tick in axis.get_xticks())
    draw_curves(tmp_path / "curves.png", _rows(), "val_accuracy")
    assert drawn[1].axes[0].get_ylim()[1] > 2
    assert not drawn[1].axes[0].texts


def test_learning_curves_have_a_band_over_seeds(drawn: list[Figure], tmp_path: Path) -> None:
    tables = {"rings": [_rows(1e6), _rows(1e6, 4)], "plain": [_rows()]}
    draw_learning_curves(tmp_path / "curves.png", tables, "val_accuracy", "patches")
    loss, _, score = drawn[0].axes
    rings, plain = score.lines
    assert np.asarray(rings.get_ydata()).tolist() == pytest.approx([50, 60, 70, 80])  # as far as both seeds go
    assert len(np.asarray(plain.get_xdata())) == 6
    assert [len(axis.collections) for axis in drawn[0].axes] == [1, 1, 1]
    assert loss.get_ylim()[1] < 3
    assert score.get_ylabel() == "Validation accuracy (%)"
    assert "means of 2 seeds" in drawn[0].get_supxlabel()


@pytest.mark.parametrize("far", [1e6, -1e6])
def test_robust_limits_show_all_but_what_lies_far_out(far: float) -> None:
    near = [0.1 * number for number in range(20)]
    limits = robust_limits([far, *near])
    assert limits is not None
    assert limits[0] < 0 < 1.9 < limits[1] < 3
    assert limits[0] > -1
    assert robust_limits(near) is None
    assert robust_limits([1e6, 1.0, 2.0]) is None  # too few to say which is far out
    assert robust_limits([5.0] * 10) is None


def test_rotation_curves_are_percent_with_a_band_over_seeds(drawn: list[Figure], tmp_path: Path) -> None:
    curves = {"rings": [_curve(0.80), _curve(0.84)], "plain": [_curve(0.7)]}
    paths = draw_angle_curves(tmp_path / "rotation.pdf", curves, "dice", "vessels, test, n = 3 images")
    assert paths == (tmp_path / "rotation.pdf", tmp_path / "rotation-polar.pdf")
    straight, polar = (figure.axes[0] for figure in drawn)
    for axis in (straight, polar):
        rings, plain = axis.lines
        values = np.asarray(rings.get_ydata())
        assert values[0] == pytest.approx(87)
        assert np.asarray(plain.get_ydata())[0] == pytest.approx(75)
        assert values[-1] == values[0]  # the circle is closed
        (band,) = axis.collections
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(87 + math.sqrt(8))  # ± one sample standard deviation
    assert straight.get_ylabel() == "Dice (%)"
    assert polar.name == "polar"
    caption = drawn[0].get_supxlabel()
    assert "n = 3 images" in caption
    assert "means of 2 seeds" in caption.replace("\n", " ")


def test_bands_of_many_curves_are_left_out(drawn: list[Figure], tmp_path: Path) -> None:
    many = {f"a network with a name, {number}": [_curve(0.2), _curve(0.8)] for number in range(9)}
    draw_angle_curves(tmp_path / "rotation.pdf", many, "dice", "vessels")
    straight = drawn[0].axes[0]
    assert not straight.collections
    assert "bands" not in drawn[0].get_supxlabel()
    low, high = straight.get_ylim()
    assert high - low < 30  # of the lines alone


def test_no_two_of_sixteen_curves_look_alike(drawn: list[Figure], tmp_path: Path) -> None:
    draw_angle_curves(tmp_path / "rotation.svg", {f"network {i}": [_curve(0.5 + i / 50)] for i in range(16)}, "dice")
    for figure in drawn:
        looks = {
            (line.get_color(), line.get_linestyle(), line.get_marker(), line.get_markerfacecolor())
            for line in figure.axes[0].lines
        }
        assert len({look[:2] for look in looks}) == len({look[2:] for look in looks}) == 16


def test_confusion_matrix_shows_shares_of_the_true_class(drawn: list[Figure], tmp_path: Path) -> None:
    confusion_matrix_figure(tmp_path / "confusion.png", [[3, 1], [0, 0]], ["cat", "dog"], "pets, test")
    axis = drawn[0].axes[0]
    assert [text.get_text() for text in axis.texts] == ["75\n3", "25\n1"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat (4)", "dog (0)"]
    shares = axis.images[0].get_array()
    assert shares[0].tolist() == [75, 25]
    assert shares.mask[1].all()  # no dog was shown: there are no shares
    assert "n = 4 images" in drawn[0].get_supxlabel()
    with pytest.raises(ValueError, match="2 x 2"):
        confusion_matrix_figure(tmp_path / "confusion.png", [[1, 2, 3]], ["cat", "dog"])


def test_commands_write_figures_in_the_format_asked_for(
    make_set: Callable[..., Path], sre: Callable[..., int], tmp_path: Path
) -> None:
    from tests.training.conftest import TINY

    make_set("tiny")
    tiny = [*TINY, "--med-mnist", "tiny", "--epochs", "1", "--eval-rot", "--log-img", "--figure-format", "svg"]
    assert sre("train", *tiny) == 0
    (run,) = (tmp_path / "logs" / "task").iterdir()
    drawn = {"curves.svg", "batch.svg", "rotation.svg", "rotation-polar.svg"}
    assert drawn <= {path.name for path in run.rglob("*.svg")}
    assert not list(run.rglob("*.png"))
    evaluated = tmp_path / "evaluated"
    assert (
        sre("evaluate", run, "--output", evaluated, "--figure-format", "pdf", "--no-flips", "--step-degrees", "90") == 0
    )
    assert {path.name for path in evaluated.glob("*.pdf")} == {"rotation.pdf", "rotation-polar.pdf"}
    assert json.loads((evaluated / "evaluation.json").read_text())[run.name]["n"] == 6
