"""Every option of the training commands, once: its name, default, group and meaning.

A command's options are a dataclass. The command line is built from its fields, ``config.json`` is written from
them, and a run is resumed only if the fields that change a result agree (:mod:`.schema` does all three). Names and
defaults are those of the reference training script where it has the option.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from sre_triton.training.files import FIGURE_FORMATS
from sre_triton.training.option_groups import augment as _augment
from sre_triton.training.option_groups import data as _data
from sre_triton.training.option_groups import machine as _machine
from sre_triton.training.option_groups import model as _model
from sre_triton.training.option_groups import optimiser as _optimiser
from sre_triton.training.option_groups import reference as _reference
from sre_triton.training.option_groups import run as _run
from sre_triton.training.option_groups import turn as _turn
from sre_triton.training.run_options import RunOptions, TurningOptions
from sre_triton.training.schema import option

__all__ = [
    "SCORE_OPTIONS",
    "CompareOptions",
    "EvaluateOptions",
    "ExportOptions",
    "PredictOptions",
    "RunOptions",
    "SegmentOptions",
    "TrainOptions",
    "TurningOptions",
    "VisualizeOptions",
]

_quiet = partial(option, False, "print errors alone", result=False)


DEFAULT_SIDE = 224
"""Side that images of ``train --data`` are resized to."""

LAYOUTS = ("auto", "folder", "csv", "drive", "chase_db1", "stare", "hrf")
"""How the photographs and masks of ``segment --data`` can lie."""

SCORE_OPTIONS = ("interpolation", "padding", "expand", "reference_protocol", "window_size", "test_crop", "overlap")
"""Options that change how a trained network is scored; some of them also what is learned."""

NORMALISATIONS = ("none", "image", "field")
"""What the pictures of ``segment`` are normalised by: nothing, all of their pixels, or those that are not black."""


@dataclass
class TrainOptions(RunOptions):
    """Options of ``sre-triton train``."""

    task: ClassVar[str] = "classification"
    command: ClassVar[str] = "train"
    dropped: ClassVar[dict[str, str]] = {
        "--sre-shape": "rings are always round; circular=False of the layer gives the paper's other count of rings",
        "--dev": "there is no debugging mode; --dry-run trains on one batch",
    }

    med_mnist: str = _data("", "MedMNIST set, or another .npz file like them", metavar="NAME", common=True)
    data_root: Path = _data(Path("~/.medmnist"), "folder of .npz files", metavar="DIR", result=False, common=True)
    image_size: int | None = _data(
        None, "side of the images of --data (default: 224)", metavar="N", common=True, least=1
    )
    medmnist_size: int = _data(28, "side of the images; 28 is resized to 32", choices=(28, 64, 128, 224))
    balanced_sampler: bool = _data(False, "draw training images with replacement, every class alike")
    patches_seed: int = _data(1, "seed of the embedded patches", metavar="S")
    multi_label: bool = _data(False, "insist on a multi-label set; without it the file decides")
    download: bool = _data(False, "fetch a missing MedMNIST file", result=False, common=True)

    model_type: str = _model(
        "sre_resnet18",
        "`sre-triton models`, histogram (default: %(default)s)",
        metavar="NAME",
        common=True,
    )
    sre_conv_size: int = _model(3, "kernel size of all stages", metavar="K", common=True)
    sre_conv_size_list: list[int] | None = _model(
        None, "kernel size of each stage, as 9 9 5 5", flags=("--ri-conv-size-list",), metavar="K", nargs="+"
    )
    sre_conv_k: list[int] | None = _model(None, "rings of all stages, or of each", metavar="B", nargs="+", least=1)
    res_inplanes: int = _model(64, "channels of the first stage", metavar="C", common=True, least=1)
    large_conv: bool = _model(False, "a 7x7 stem")
    maxpool: bool = _model(False, "global max pooling in place of the average")
    dropout_p: float = _model(-1.0, "dropout before the classifier; below 0 there is none", metavar="P", most=1)

    moco_aug: bool = _augment(False, "random resized crop (0.5 to 1) and colour in 2-D; scale, shift and blur in 3-D")
    no_aug: bool = _augment(False, "no augmentation, whatever else is asked for")
    translation: bool = _augment(False, "random translation in training")
    translate_ratio: float = _augment(0.2, "its reach, as a share of the side", metavar="R", least=0, most=1)
    test_translation: bool = _augment(False, "random translation of test images")
    test_translate_ratio: float | None = _augment(
        None, "its reach (default: --translate-ratio)", metavar="R", least=0, most=1
    )
    rotate: bool = _augment(False, "turn test images by a random angle")
    degree: float = _augment(180.0, "largest angle of --rotate, or its angle with --fix-rotate", metavar="DEG")
    fix_rotate: bool = _augment(False, "turn by exactly --degree (and --train-degree)")
    aug_axis: str = _augment(
        "x",
        "axis that 3-D volumes are turned about; any: each about one of the three, by lot",
        choices=("x", "y", "z", "any"),
    )
    vflip: bool = _augment(False, "flip test images upside down")
    hflip: bool = _augment(False, "flip test images left to right")
    dflip: bool = _augment(False, "flip test volumes front to back")
    pad_size_h: int | None = _augment(None, "pad images to this height", metavar="N", least=1)
    pad_size_w: int | None = _augment(None, "pad images to this width", metavar="N", least=1)

    res_keep_conv1: bool = _reference(False, "changes nothing: the stem is 5x5 at stride 1 in any case")


@dataclass
class SegmentOptions(RunOptions):
    """Options of ``sre-triton segment``."""

    task: ClassVar[str] = "segmentation"
    command: ClassVar[str] = "segment"
    fallback_optimiser: ClassVar[str] = "adam"

    layout: str = _data("auto", "layout of --data; auto finds it out", choices=LAYOUTS)
    fov: Path | None = _data(
        None, "folder of masks of the field of view for --data, where it has none of its own", metavar="DIR"
    )
    observer: int = _data(1, "whose masks to take of a set that two observers have traced", choices=(1, 2))
    mask_threshold: float | None = _data(
        None, "make two classes of masks, values below it and the others (default: a class per value)", metavar="V"
    )
    vessels_size: int = _data(256, "side of the embedded vessel images", metavar="N", least=64)
    vessels_count: list[int] = _data(
        [20, 4, 20], "embedded images to train, validate and test on", metavar="N", nargs="+"
    )
    vessels_seed: int = _data(0, "seed of the embedded vessel images", metavar="S", least=0)
    crop_size: int = _data(256, "side of the training crops", metavar="N", common=True, least=1)
    crops_per_image: int = _data(4, "crops from each image in an epoch", metavar="N", common=True, least=1)
    window_size: int = _data(
        0,
        "side of the sliding window (0: --crop-size, or the whole image if it is smaller)",
        metavar="N",
        result=False,
        least=0,
    )
    test_crop: int = _data(
        0,
        "side of the middle of an image that is tested on, after what is around it has turned with it (0: all of it)",
        metavar="N",
        result=False,
        least=0,
    )
    normalise: str = _data(
        "none",
        "bring each picture to mean 0 and deviation 1, by all pixels or by those that are not black",
        choices=NORMALISATIONS,
    )
    overlap: float = _data(
        0.5, "share of its side by which a window overlaps the next", metavar="R", result=False, least=0, below=1
    )

    model_type: str = _model(
        "sre_unet",
        "sre_unet, gmr_unet, plain_unet or another registered *_unet, unet or monai:NAME (default: %(default)s)",
        metavar="NAME",
        common=True,
    )
    tune_threshold: bool = _optimiser(
        False, "of two classes, take the probability from which Dice on validation is best, and keep it"
    )
    loss: str = _optimiser("ce", "cross-entropy, or Dice and cross-entropy", choices=("ce", "dice-ce"), common=True)

    batch_size: int = _optimiser(4, "crops per process and step", flags=("-b",), metavar="N", common=True, least=1)
    lr: float = _optimiser(5e-4, "learning rate", metavar="RATE", common=True, above=0)
    weight_decay: float = _optimiser(0.0, "weight decay", metavar="WD", least=0)
    test_batch_size: int = _turn(4, "windows per evaluated batch", metavar="N", result=False, least=1)


@dataclass
class EvaluateOptions(TurningOptions):
    """Options of ``sre-triton evaluate``."""

    split: str = _data("test", "what to evaluate on", choices=("train", "val", "test", "all"), common=True)
    data_root: Path | None = _data(None, "folder of .npz files (default: as in training)", metavar="DIR", common=True)
    data: Path | None = _data(None, "folder or CSV of images (default: as in training)", metavar="PATH", common=True)
    fov: Path | None = _data(None, "folder of fields of view for --data", metavar="DIR", common=True)
    step_degrees: float | None = _turn(
        None, "degrees between two angles (default: 10; 30 of volumes)", metavar="DEG", common=True
    )
    no_flips: bool = _turn(False, "leave out the flip test", common=True)
    names: list[str] | None = _turn(None, "names in the table and the picture", metavar="NAME", nargs="+", common=True)
    test_batch_size: int = _turn(
        0, "images per evaluated batch (0: as in training)", metavar="N", result=False, least=0
    )
    no_cuda: bool = _machine(False, "stay on the CPU", common=True)
    threads: int = _machine(0, "threads of PyTorch (0: its own choice)", metavar="N", common=True, least=0)
    output: Path | None = _run(
        None, "folder of the results (default: evaluation-SPLIT in each run)", metavar="DIR", common=True
    )
    figure_format: str = _run("png", "format of figures", choices=FIGURE_FORMATS, common=True)
    quiet: bool = _quiet(group="run folder and logs")


@dataclass
class CompareOptions:
    """Options of ``sre-triton compare`` beside those of the training command that it repeats."""

    models: list[str] | None = option(
        None,
        "networks, or names of --model-options (default: the ring network and its twin)",
        group="comparison",
        metavar="NAME",
        nargs="+",
    )
    model_options: list[str] = option(
        [],
        "options of one network, as 'NAME --train-rotate'",
        group="comparison",
        metavar="TEXT",
        nargs="+",
    )
    tune: list[float] | None = option(
        None,
        "learning rates that every network tries on validation",
        group="comparison",
        metavar="RATE",
        nargs="+",
        above=0,
    )
    seeds: list[int] = option([1, 2, 3], "seeds to train each with", group="comparison", metavar="S", nargs="+")
    jobs: int = option(
        1, "trainings at the same time; on a CPU with --threads 1", group="comparison", metavar="N", least=1
    )
    output: Path = option(
        Path("comparison"),
        "folder of all results; run again to go on",
        group="comparison",
        metavar="DIR",
    )


@dataclass
class PredictOptions:
    """Options of ``sre-triton predict``."""

    output: Path = option(
        Path("predictions"), "folder of the answers; run again to go on", group="prediction", metavar="DIR"
    )
    tta: bool = option(
        False, "average over the 8 turns and flips, for networks that are not equivariant", group="prediction"
    )
    batch: int = option(8, "pictures of one size to answer at a time", group="prediction", metavar="N", least=1)
    masks: Path | None = option(None, "folder of masks to score a segmentation by", group="prediction", metavar="DIR")
    fov: Path | None = option(
        None,
        "folder of masks of the field of view, inside which --masks are scored too",
        group="prediction",
        metavar="DIR",
    )
    max_value: float | None = option(
        None,
        "stored value of white (default: 255 or 65535 by type, 1 for floats)",
        group="prediction",
        metavar="V",
        above=0,
    )
    no_cuda: bool = option(False, "stay on the CPU", group="prediction")
    threads: int = option(0, "threads of PyTorch (0: its own choice)", group="prediction", metavar="N", least=0)
    quiet: bool = _quiet(group="prediction")


EXPORT_FORMATS = ("onnx", "torchscript", "pt2", "aoti")


@dataclass
class ExportOptions:
    """Options of ``sre-triton export``."""

    format: str = option(
        "onnx",
        "ONNX, TorchScript, a program of torch.export, or a library compiled by AOTInductor (needs a C++ compiler)",
        group="export",
        choices=EXPORT_FORMATS,
    )
    output: Path | None = option(
        None,
        "file to write (default: network.onnx or .pt, .pt2, .aoti.pt2 in the run folder)",
        group="export",
        metavar="FILE",
    )
    device: str = option("cpu", "where it will run; ONNX runs anywhere", group="export", choices=("cpu", "cuda"))
    quiet: bool = _quiet(group="export")


@dataclass
class VisualizeOptions:
    """Options of ``sre-triton visualize``."""

    checkpoint: Path = option(Path(), "checkpoint or run folder", group="visualization", metavar="CKPT")
    output: Path = option(Path("visualization"), "folder of the pictures", group="visualization", metavar="DIR")
    layer: str = option(
        "", "layer to look at (default: the last with spatial extent)", group="visualization", metavar="NAME"
    )
    target_class: int | None = option(
        None, "class of the Grad-CAM (default: the predicted one)", group="visualization", metavar="C"
    )
    step_degrees: float = option(15.0, "degrees between two frames", group="visualization", metavar="DEG")
    channels: int = option(
        4, "feature maps to show, those of largest variance", group="visualization", metavar="N", least=0
    )
    size: int = option(
        0,
        "longer side of what the network sees (default: as in training, of a segmentation at most 512)",
        group="visualization",
        metavar="N",
        least=0,
    )
    interpolation: str = option(
        "bilinear", "interpolation of turned images", group="visualization", choices=("nearest", "bilinear", "bicubic")
    )
    padding: str = option("zeros", "what comes in from outside", group="visualization", choices=("zeros", "reflect"))
    against: Path | None = option(
        None, "second network, beside it in the film: run or checkpoint", group="visualization", metavar="CKPT"
    )
    mask: Path | None = option(None, "mask to score a segmentation by", group="visualization", metavar="FILE")
    film: str = option("gif", "format of the film", group="visualization", choices=("gif", "mp4", "none"))
    figure_format: str = option("png", "format of figures", group="visualization", choices=FIGURE_FORMATS)
    no_cuda: bool = option(False, "stay on the CPU", group="visualization")
    quiet: bool = _quiet(group="visualization")
