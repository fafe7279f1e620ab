"""Results of evaluations: of what they are, in what unit, and that none is lost, mixed with another or stale."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sre_triton.training.data.warp import Symmetry
from sre_triton.training.evaluation.contestants import contestants
from sre_triton.training.evaluation.paired import bootstrap, paired_differences
from sre_triton.training.evaluation.results import kept_results, result_folder, save_results, written
from sre_triton.training.options import CompareOptions, SegmentOptions, TrainOptions, TurningOptions
from sre_triton.training.tasks.classification import classification_scores
from sre_triton.training.tasks.segmentation_scores import segmentation_scores
from sre_triton.training.tasks.turning import rotation_test
from sre_triton.training.tasks.undefined import means_of_known
from tests.training.conftest import TINY, TINY_UNET, Command, MakeSet


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def train(sre: Command, *arguments: str | Path, name: str = "tiny") -> None:
    assert sre("train", *TINY, "--med-mnist", name, "--epochs", "1", *arguments) == 0


def test_results_lie_by_run_and_split_and_say_what_they_are(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny", counts=(12, 6, 5))
    for model in ("sre_resnet18", "resnet18"):
        train(sre, "--model-type", model)
    runs = [tmp_path / "logs" / "task" / f"tiny-{model}-seed1" for model in ("sre_resnet18", "resnet18")]
    assert sre("evaluate", *runs, "--step-degrees", "90") == 0
    assert sre("evaluate", runs[0], "--step-degrees", "90", "--split", "val") == 0
    both = read(runs[0].parent / "evaluation-test" / "evaluation.json")
    for run in runs:
        own = read(run / "evaluation-test" / "evaluation.json")[run.name]
        assert own == both[run.name]
        assert own["unit"] == "percent"
        accuracy = own["rotation"]["rows"][0]["accuracy"]
        assert accuracy == pytest.approx(20 * round(accuracy / 20))  # of five images
    with (runs[0] / "evaluation-test" / "rotation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["data"], row["split"], row["n"], row["seed"]) for row in rows} == {("tiny", "test", "5", "1")}
    assert {row["checkpoint"] for row in rows} == {str(runs[0] / "best.ckpt")}
    assert [row["angle"] for row in rows] == ["0.0", "90.0", "180.0", "270.0", "", "", ""]
    assert [row["flip"] for row in rows] == ["", "", "", "", "none", "upside down", "left to right"]
    assert float(rows[0]["accuracy"]) == both[runs[0].name]["rotation"]["rows"][0]["accuracy"]
    assert read(runs[0] / "evaluation-val" / "evaluation.json")[runs[0].name]["n"] == 6


def test_results_of_something_else_are_kept(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    train(sre)
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    evaluate = ["evaluate", run, "--step-degrees", "180"]
    assert sre(*evaluate) == 0
    first = read(run / "evaluation-test" / "evaluation.json")
    assert sre(*evaluate, "--no-flips") == 0  # the same: in the same place, and the flips stay
    assert read(run / "evaluation-test" / "evaluation.json") == first
    assert sre(*evaluate, "--interpolation", "bilinear") == 0
    assert read(run / "evaluation-test" / "evaluation.json") == first
    assert read(run / "evaluation-test-2" / "evaluation.json")[run.name]["interpolation"] == "bilinear"
    output = tmp_path / "chosen"
    output.mkdir()
    (output / "notes.txt").write_text("of mine")
    assert sre(*evaluate, "--output", output) == 0
    assert sre(*evaluate, "--output", output) == 0
    capsys.readouterr()
    assert sre(*evaluate, "--output", output, "--padding", "reflect") == 2
    assert f"--output {output} holds results of other networks, images or options" in capsys.readouterr().err
    assert read(output / "evaluation.json") == first


def test_runs_of_different_data_are_refused_before_the_first_evaluation(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sre_triton.training.tasks.classification import ClassificationTask

    make_set("tiny")
    make_set("other", counts=(12, 6, 5))
    train(sre)
    train(sre, name="other")
    runs = [tmp_path / "logs" / "task" / f"{name}-sre_resnet18-seed1" for name in ("tiny", "other")]
    monkeypatch.setattr(ClassificationTask, "each_scored", lambda *_: pytest.fail("it began to evaluate"))
    assert sre("evaluate", *runs) == 2
    assert "are of different images: evaluate them apart" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_place_that_cannot_be_written_to_is_said_first(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    train(sre)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    run = tmp_path / "logs" / "task" / "tiny-sre_resnet18-seed1"
    assert sre("evaluate", run, "--output", locked / "more") == 2
    assert f"--output {locked / 'more'}: cannot write there" in capsys.readouterr().err


def test_an_output_below_a_file_is_said_first(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert sre("evaluate", tmp_path / "nothing", "--output", tmp_path / "file" / "more") == 2
    error = capsys.readouterr().err
    assert f"--output {tmp_path / 'file' / 'more'}: cannot write there" in error
    assert error.count("\n") == 1


def test_folders_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    about = {"data": "a", "split": "test", "n": 2, "seed": 1, "checkpoint": "best.ckpt"}
    one = {"net": {**about, "rotation": {"rows": [{"angle": 0.0, "dice": 0.125, "undefined_dice": 2.0}],
                                             "summary": {"dice": {"mean": 0.125, "std": math.nan}}}}}  # fmt: skip
    folder = result_folder(tmp_path, "evaluation-test", one)
    assert folder == tmp_path / "evaluation-test"
    save_results(folder, one)
    text = (folder / "evaluation.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["net"]["rotation"]["rows"] == [{"angle": 0.0, "dice": 12.5, "undefined_dice": 2.0}]
    kept = kept_results(folder)
    assert kept is not None
    assert kept["net"]["rotation"]["rows"] == one["net"]["rotation"]["rows"]  # type: ignore[index]
    assert written(kept["net"])["rotation"]["summary"]["dice"]["mean"] == 12.5
    assert result_folder(tmp_path, "evaluation-test", one) == folder
    assert result_folder(tmp_path, "evaluation-test", {"net": {**about, "data": "b"}}) == tmp_path / "evaluation-test-2"
    assert result_folder(tmp_path, "evaluation-test", one, [folder]) == tmp_path / "evaluation-test-2"
    (folder / "evaluation.json").write_text("{")  # damaged: not ours to replace
    assert result_folder(tmp_path, "evaluation-test", one) == tmp_path / "evaluation-test-2"


def test_scores_are_in_percent_in_every_file(sre: Command, tmp_path: Path) -> None:
    from sre_triton.training.files import as_shares, in_percent

    row = {"epoch": 3, "lr": 0.5, "train_loss": 0.25, "val_dice": 0.5, "val_undefined_auc": 2.0, "angle": 90.0,
           "auc": 0.1, "n": 5, "flip": "none", "grad_norm": 2.0}  # fmt: skip
    assert in_percent(row) == row | {"val_dice": 50.0, "auc": 10.0}
    assert as_shares(in_percent(row)) == pytest.approx(row)
    assert math.isnan(as_shares({"auc": None})["auc"])
    assert sre("segment", *TINY_UNET, "--epochs", "2", "--eval-rot") == 0
    run = tmp_path / "logs" / "task" / "vessels-sre_unet-seed1"
    state = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]["Recorder"]["rows"]
    logs = read(run / "logs.json")
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for number, epoch in enumerate(state):
        for name in ("val_accuracy", "val_auc", "train_accuracy"):
            assert float(table[number][name]) == logs[name][number] == pytest.approx(100 * epoch[name])
        assert float(table[number]["val_loss"]) == epoch["val_loss"]
    turned = read(run / "evaluation-test" / "evaluation.json")["sre_unet"]["rotation"]["rows"]
    assert logs["eval_rot_acc"] == [row["dice"] for row in turned]
    assert max(logs["val_accuracy"]) > 1


# The comparison ---------------------------------------------------------------------------------------


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that does not measure memory, for which it would start a process each time."""
    from sre_triton.training.evaluation import compare

    monkeypatch.setattr(compare, "peak_training_memory", lambda *_: None)


@pytest.mark.usefixtures("unmeasured")
def test_compare_measures_again_what_would_be_measured_otherwise(sre: Command, tmp_path: Path) -> None:
    output = tmp_path / "comparison"
    arguments = ["compare segment", *TINY_UNET, "--epochs", "1", "--models", "sre_unet", "--seeds", "1",
                 "--output", output]  # fmt: skip
    run = output / "sre_unet" / "seed-1"

    def score() -> float:
        result: float = read(output / "comparison.json")["runs"]["sre_unet"][0]["rotation"]["rows"][1]["auc"]
        return result

    assert sre(*arguments) == 0
    files = ("config.json", "versions.json", "last.ckpt", "metrics.csv")
    before = {name: (run / name).read_bytes() for name in files}
    whole, first = score(), (run / "evaluation-test" / "evaluation.json").read_bytes()
    assert sre(*arguments, "--test-crop", "32") == 0
    cropped = read(run / "evaluation-test-2" / "evaluation.json")["sre_unet"]
    assert cropped["test_crop"] == 32
    assert score() == cropped["rotation"]["rows"][1]["auc"] != whole
    assert sre(*arguments, "--window-size", "16", "--overlap", "0.25") == 0
    windows = read(run / "evaluation-test-3" / "evaluation.json")["sre_unet"]
    assert (windows["window_size"], windows["overlap"]) == (16, 0.25)
    assert sre(*arguments, "--reference-protocol") == 0
    assert len(read(run / "evaluation-test-4" / "evaluation.json")["sre_unet"]["rotation"]["rows"]) == 37
    assert sre(*arguments) == 0  # as at first: from the first file
    assert score() == whole
    assert (run / "evaluation-test" / "evaluation.json").read_bytes() == first
    assert {name: (run / name).read_bytes() for name in files} == before
    assert not (run / "resumed.json").exists()


@pytest.mark.usefixtures("unmeasured")
def test_compare_of_more_epochs_is_of_the_longer_training(make_set: MakeSet, sre: Command, tmp_path: Path) -> None:
    make_set("tiny")
    output = tmp_path / "comparison"
    steady = [option for option in TINY if option != "--cos"]
    arguments = ["compare train", *steady, "--med-mnist", "tiny", "--models", "sre_resnet18", "--seeds", "1"]
    for epochs in (1, 2):
        assert sre(*arguments, "--epochs", str(epochs), "--output", output) == 0
        state = torch.load(output / "sre_resnet18" / "seed-1" / "last.ckpt", weights_only=True)
        assert state["epoch"] == epochs - 1


@pytest.mark.usefixtures("unmeasured")
def test_a_spread_over_seeds_needs_two(make_set: MakeSet, sre: Command, tmp_path: Path, capsys: Any) -> None:
    make_set("tiny")
    arguments = ["compare train", *TINY, "--med-mnist", "tiny", "--epochs", "1", "--models", "sre_resnet18"]
    output = tmp_path / "comparison"
    assert sre(*arguments, "--seeds", "1", "--output", output) == 0
    said = capsys.readouterr().out
    assert "±" not in said
    assert "accuracy over angles: mean" in said
    assert "±" not in (output / "comparison.md").read_text()
    assert not any(name.endswith("_sd") for name in read(output / "comparison.json")["networks"][0])
    assert sre(*arguments, "--seeds", "1", "2", "--output", output) == 0
    assert "±" in (output / "comparison.md").read_text()
    with (output / "comparison.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    cell = (output / "comparison.md").read_text().splitlines()[2].split("|")[2].strip()
    assert cell == f"{float(row['accuracy_mean']):.2f} ± {float(row['accuracy_mean_sd']):.2f}"
    assert (row["data"], row["split"], row["n"]) == ("tiny", "test", "6")


# Scores that are not defined --------------------------------------------------------------------------


def test_scores_of_an_empty_mask_are_undefined_and_left_out() -> None:
    vessel = torch.tensor([0.9, 0.8, 0.2, 0.1])
    answers = torch.stack([1 - vessel, vessel])
    full = segmentation_scores(answers, torch.tensor([1, 0, 1, 0]))
    empty = segmentation_scores(answers, torch.zeros(4))
    assert {name for name, value in empty.items() if math.isnan(value)} == {"auc", "sensitivity"}
    assert (empty["dice"], empty["specificity"]) == (0, 0.5)
    everywhere = segmentation_scores(answers, torch.ones(4))
    assert {name for name, value in everywhere.items() if math.isnan(value)} == {"auc", "specificity"}
    means = means_of_known([full, empty, empty, full])
    assert means["auc"] == full["auc"]
    assert means["dice"] == full["dice"] / 2
    assert (means["undefined_auc"], means["undefined_sensitivity"]) == (2, 2)
    assert "undefined_dice" not in means
    assert math.isnan(means_of_known([empty])["auc"])


def test_classes_that_do_not_occur_are_counted() -> None:
    logits = torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 1, 0], [0, 2, 0]])
    scores = classification_scores(logits, torch.tensor([0, 0, 0, 1]), multi_label=False)
    assert (scores["undefined_auc"], scores["undefined_balanced_accuracy"]) == (1, 1)
    every = classification_scores(logits, torch.tensor([0, 1, 2, 1]), multi_label=False)
    assert not any(name.startswith("undefined") for name in every)
    several = classification_scores(logits[:, :2], torch.tensor([[1, 0], [0, 0], [1, 0], [1, 0]]), multi_label=True)
    assert several["undefined_auc"] == 1


def test_what_is_left_out_is_said(sre: Command, tmp_path: Path, capsys: Any) -> None:
    from tests.training.photographs import write_image, write_mask

    for number in range(6):
        truth = write_image(tmp_path / "one" / "images" / f"{number}.png", number)
        write_mask(tmp_path / "one" / "masks" / f"{number}.png", truth & (number % 2 == 0))
    split = tmp_path / "split.csv"
    split.write_text("image,split\n0.png,train\n1.png,train\n2.png,val\n3.png,val\n4.png,test\n5.png,test\n")
    arguments = ["--data", tmp_path / "one", "--split", split, "--epochs", "1", "--crop-size", "32"]
    assert sre("segment", *TINY_UNET, *arguments, "--eval-rot") == 0
    said = capsys.readouterr().out
    assert "AUC of sre_unet is undefined for 1 images, left out" in " ".join(said.split())
    run = tmp_path / "logs" / "task" / "one-sre_unet-seed1"
    result = read(run / "evaluation-test" / "evaluation.json")["sre_unet"]["rotation"]
    assert result["summary"]["auc"]["undefined"] == 1
    assert 0 < result["summary"]["auc"]["mean"] <= 100
    assert read(run / "logs.json")["val_undefined_auc"] == [1.0]


def test_scores_of_every_class_are_those_counted_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3, 5):
        probabilities = torch.randn(classes, 80, generator=generator).softmax(dim=0)
        labels = torch.randint(0, max(2, classes - 1), (80,), generator=generator)  # a class may not occur
        found = probabilities.argmax(dim=0)
        expected: dict[str, list[float]] = {"dice": [], "iou": [], "sensitivity": [], "specificity": []}
        for label in range(1, classes):
            hit = int(((found == label) & (labels == label)).sum())
            miss, alarm = int((labels == label).sum()) - hit, int((found == label).sum()) - hit
            clear = 80 - hit - miss - alarm
            expected["dice"].append(2 * hit / (2 * hit + miss + alarm) if hit + miss + alarm else 1.0)
            expected["iou"].append(hit / (hit + miss + alarm) if hit + miss + alarm else 1.0)
            expected["sensitivity"] += [hit / (hit + miss)] if hit + miss else []
            expected["specificity"] += [clear / (clear + alarm)] if clear + alarm else []
        scores = segmentation_scores(probabilities, labels)
        for name, values in expected.items():
            assert scores[name] == pytest.approx(sum(values) / len(values)), (classes, name)
        assert scores["accuracy"] == pytest.approx(float((found == labels).double().mean()))


def test_five_answers_are_a_score_where_there_are_more_classes() -> None:
    logits, labels = torch.randn(40, 6), torch.arange(40) % 6
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert classification_scores(logits, labels, False)["top5"] == pytest.approx((ranks < 5).float().mean().item())
    assert "top5" not in classification_scores(logits[:, :5], labels % 5, False)


def test_right_and_oblique_angles_stand_apart() -> None:
    class Task:
        description = {"ndim": 2}
        main_score = "accuracy"

        def require(self, split: str) -> None:
            pass

        def each_scored(self, split: str, symmetry: Symmetry, how: TurningOptions) -> Any:
            right, wrong = (0.9, 0.5) if symmetry.angle % 90 == 0 else (0.4 + symmetry.angle / 3600, 0.2)
            return {"accuracy": (right + wrong) / 2}, [{"accuracy": right}, {"accuracy": wrong}]

    result = rotation_test(Task(), "test", TurningOptions(), 45)  # type: ignore[arg-type]
    figures, oblique = result["summary"]["accuracy"], [0.3 + angle / 7200 for angle in (45, 135, 225, 315)]
    assert figures["mean_right"] == figures["at_0"] == figures["at_90"] == pytest.approx(0.7)
    assert figures["std_right"] == 0
    assert figures["mean_oblique"] == pytest.approx(np.mean(oblique))
    assert figures["std_oblique"] == pytest.approx(np.std(oblique))
    assert figures["worst"] == pytest.approx(oblique[0])
    assert result["images"]["right"] == result["images"]["at_0"] == [0.9, 0.5]
    assert result["images"]["oblique"] == pytest.approx([0.4 + 180 / 3600, 0.2])
    assert np.mean(result["images"]["mean"]) == pytest.approx(figures["mean"])


def test_differences_are_paired_by_image_and_averaged_over_seeds() -> None:
    rng = np.random.default_rng(3)
    hard = rng.uniform(0.2, 0.9, 200)  # what images differ by has no part in the interval

    def runs(ahead: float) -> list[dict[str, Any]]:
        noise = rng.normal(0, 0.02, (2, 200))
        return [{"rotation": {"images": {"mean": (hard + ahead + one).tolist()}}} for one in noise]

    ours, theirs = runs(0.03), runs(0.0)
    (row,) = paired_differences({"ring": ours, "plain": theirs})
    apart = np.mean([run["rotation"]["images"]["mean"] for run in ours], axis=0)
    apart = apart - np.mean([run["rotation"]["images"]["mean"] for run in theirs], axis=0)
    assert (row["network"], row["against"], row["images"]) == ("ring", "plain", 200)
    assert row["difference"] == pytest.approx(apart.mean())
    half = 1.96 * apart.std(ddof=1) / math.sqrt(200)
    assert row["high"] - row["difference"] == pytest.approx(half, rel=0.1)
    assert row["difference"] - row["low"] == pytest.approx(half, rel=0.1)
    assert paired_differences({"alone": ours}) == []


def test_the_bootstrap_knows_whether_images_agree() -> None:
    assert bootstrap([1.0] * 8) == (1.0, 1.0)
    low, high = bootstrap([1.0, -1.0] * 8)
    assert low < -0.2 < 0.2 < high


@pytest.mark.usefixtures("unmeasured")
def test_every_network_tries_every_rate_on_validation(
    make_set: MakeSet, sre: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sre_triton.training.tasks.classification import ClassificationTask

    make_set("tiny")
    output, tested = tmp_path / "compared", []
    each_scored = ClassificationTask.each_scored

    def counted(self: Any, split: str, *rest: Any) -> Any:
        tested.append((split, self.options.lr, self.options.train_flip_p))
        return each_scored(self, split, *rest)

    monkeypatch.setattr(ClassificationTask, "each_scored", counted)
    own = ["--models", "histogram", "flipped", "--model-options", "flipped --model-type histogram --train-flip-p .5"]
    arguments = [*TINY[2:], "--med-mnist", "tiny", "--epochs", "1", "--seeds", "1", *own, "--output", output]
    assert sre("compare train", *arguments, "--tune", "1e30", "0.001") == 0
    content = read(output / "comparison.json")
    for name, flips in (("histogram", 0.0), ("flipped", 0.5)):
        tuning = content["tuning"][name]
        assert [trial["lr"] for trial in tuning["trials"]] == [0.001, 1e30]
        assert tuning["chosen"] == 0.001  # the other's loss is not finite
        assert (tuning["seed"], tuning["score"], tuning["at_edge"]) == (1, "val_accuracy", True)
        assert [path.parents[1].name for path in (output / name).glob("*/*/evaluation-test")] == ["lr-0.001"]
        assert {(split, lr) for split, lr, flip in tested if flip == flips} == {("test", 0.001)}
    assert content["own_options"] == {"histogram": "", "flipped": "--model-type histogram --train-flip-p .5"}
    assert [row["lr"] for row in content["networks"]] == [0.001, 0.001]
    began = len(tested)
    again = ["--config", output / "config.json", "--tune", "0.001"]  # the file says all else that was asked for
    assert sre("compare train", *again, "--output", output) == 0
    assert len(tested) == began


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("nobody --lr 1", "begin it with one of the networks of --models, ring, plain"),
        ("plain --seed 3", "--model-options 'plain --seed 3': --seed is the same for all networks"),
        ("plain --expand", "--expand is the same for all networks"),
        ("plain --threads 2", "--threads is the same for all networks"),
        ("plain --lr x", "--model-options 'plain --lr x': argument --lr: expected a finite number, got 'x'"),
        ("plain --lrr 1", "unknown option --lrr, did you mean --lr?"),
        ("plain '", "No closing quotation"),
        ("", "is the name of a network and its options, got an empty one"),
    ],
)
def test_options_of_one_network_that_cannot_be(entry: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        contestants(TrainOptions(), CompareOptions(models=["ring", "plain"], model_options=[entry]))


def test_networks_have_options_of_their_own() -> None:
    entries = ['turned --model-type unet --train-rotate --model-args \'{"act": "relu"}\'', "turned --no-cos --lr 1e-3"]
    compared = CompareOptions(models=["sre_unet", "turned"], model_options=entries)
    shared = SegmentOptions(cos=True, lr=0.5, data=Path("DRIVE"))
    ring, turned = contestants(shared, compared)
    assert ring.options == shared
    own = {"model_type": "unet", "train_rotate": True, "model_args": '{"act": "relu"}', "cos": False, "lr": 1e-3}
    assert turned.options == dataclasses.replace(shared, **own)
    assert [one.name for one in contestants(SegmentOptions(), CompareOptions())] == ["sre_unet", "plain_unet"]


@pytest.mark.usefixtures("unmeasured")
def test_networks_that_saw_other_images_are_not_compared(
    make_set: MakeSet, sre: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set("tiny")
    make_set("other", counts=(12, 6, 5))
    own = ["--models", "histogram", "there", "--model-options", "there --model-type histogram --med-mnist other"]
    arguments = [*TINY[2:], "--med-mnist", "tiny", "--epochs", "1", "--seeds", "1", *own]
    assert sre("compare train", *arguments, "--output", tmp_path / "compared") == 2
    assert "are of different images" in capsys.readouterr().err
