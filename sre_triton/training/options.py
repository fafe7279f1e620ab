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

_data = partial(option, group="data")
_model = partial(option, group="network")
_optimiser = partial(option, group="optimiser and schedule")
_augment = partial(option, group="augmentation")
_turn = partial(option, group="rotation test")
_machine = partial(option, group="machine", result=False)
_run = partial(option, group="run folder and logs", result=False)


DEFAULT_SIDE = 224
"""Side that images of ``train --data`` are resized to."""

LAYOUTS = ("auto", "folder", "csv", "drive", "chase_db1", "stare", "hrf")
"""How the photographs and masks of ``segment --data`` can lie."""

SCORE_OPTIONS = ("interpolation", "padding", "expand", "reference_protocol", "window_size", "test_crop", "overlap")
"""Options that change how a trained network is scored; some of them also what is learned."""

NORMALISATIONS = ("none", "image", "field")
"""What the pictures of ``segment`` are normalised by: nothing, all of their pixels, or those that are not black."""


@dataclass
class TurningOptions:
    """How images are turned, in the rotation test as in augmentation."""

    interpolation: str = _turn(
        "nearest", "interpolation of turned images", choices=("nearest", "bilinear", "bicubic"), result=True
    )
    padding: str = _turn("zeros", "what comes in from outside", choices=("zeros", "reflect"), result=True)
    expand: bool = _turn(False, "enlarge the frame so that a turned image fits in it")
    reference_protocol: bool = _turn(False, "count 0 and 360 degrees both, as the reference script does", result=False)
    test_batch_size: int = _turn(1000, "images per evaluated batch", metavar="N", result=False)


@dataclass
class RunOptions(TurningOptions):
    """What training a classifier and training a segmentation network have in common."""

    task: ClassVar[str]  # name of the task in tasks.TASKS
    fallback_optimiser: ClassVar[str] = "adadelta"

    data: Path | None = _data(
        None, "folder or CSV of your own images; see the README for the layouts", metavar="PATH", result=True
    )
    split: Path | None = _data(
        None, "CSV with the columns image and split (train, val or test) for the images of --data", metavar="FILE"
    )
    val_fraction: float | None = _data(
        None, "share of --data to validate on, where it is not divided (default: 0.2)", metavar="R"
    )
    test_fraction: float | None = _data(
        None, "share of --data to test on, where it is not divided (default: 0.2)", metavar="R"
    )
    split_seed: int = _data(0, "seed of this division", metavar="S")
    group: str = _data(
        "",
        "regular expression that finds the person in an image's name; images of a person are not divided",
        metavar="REGEX",
    )
    max_value: float | None = _data(
        None, "stored value of white (default: 255 or 65535 by type, 1 for floats)", metavar="V"
    )
    cache: int = _data(
        1024, "MB of read images of --data to keep in memory, by all processes together", metavar="MB", result=False
    )

    model_type: str = _model("", "network; `sre-triton models` lists them", metavar="NAME")
    norm_layer: str = _model("batch", "normalisation", choices=("batch", "group", "instance"))
    invariants: bool = _model(False, "let ring networks see lines: add scalars of derivatives at their finest maps")

    batch_size: int = _optimiser(64, "images per process and step", flags=("-b",), metavar="N")
    epochs: int = _optimiser(100, "passes over the training set", metavar="N")
    lr: float = _optimiser(2e-2, "learning rate")
    min_lr: float = _optimiser(1e-6, "learning rate at the end of --cos")
    weight_decay: float = _optimiser(1e-3, "weight decay; Adadelta has none", metavar="WD")
    momentum: float = _optimiser(0.9, "momentum of --sgd")
    sgd: bool = _optimiser(
        False, "SGD with momentum; without --sgd, --adam or --adamW `train` takes Adadelta and `segment` Adam"
    )
    adam: bool = _optimiser(False, "Adam")
    adamW: bool = _optimiser(False, "AdamW")  # noqa: N815 - the reference script's spelling
    balance_rings: bool = _optimiser(
        False, "scale initial weights and steps of each ring by its taps; takes 5 to 10 times the --lr"
    )
    cos: bool = _optimiser(False, "cosine schedule from --lr to --min-lr")
    one_cycle: bool = _optimiser(False, "one cycle: up to --lr over 0.3 of all steps, then down to a ten-thousandth")
    step: bool = _optimiser(False, "multiply the rate by --gamma every --step-size epochs")
    multi_step: bool = _optimiser(False, "divide the rate by 10 at the epochs of --milestones")
    milestones: list[int] = _optimiser([50, 75], "epochs of --multi-step", metavar="N", nargs="+")
    gamma: float = _optimiser(0.7, "factor of --step")
    step_size: int = _optimiser(10, "epochs between two steps of --step", metavar="N")
    warm_up: int = _optimiser(0, "epochs over which the rate rises to the schedule's", metavar="N")
    accumulate: int = _optimiser(1, "batches whose gradients make a step", metavar="N")
    label_smoothing: float = _optimiser(0.0, "share of each label that is spread over all classes", metavar="R")
    class_weights: list[str] | None = _optimiser(
        None,
        "weight of each class in the loss, or `balanced`: the inverse of its share of the training set",
        metavar="W",
        nargs="+",
    )
    early_stop: int = _optimiser(
        0, "end after so many epochs that were no better on validation (0: never)", metavar="N"
    )
    ema: float = _optimiser(
        0.0, "validate and keep a moving average of the weights, which decays by this factor each step", metavar="D"
    )
    cur_ep: int = _optimiser(0, "epochs that the weights of --load-model have already had", metavar="N")
    load_model: Path | None = _optimiser(
        None, "begin from these weights: a run folder, its checkpoint, or one of the reference script", metavar="PATH"
    )

    affine_prob: float = _augment(
        0.0,
        "probability of a random affine map in training (the reference declares 0.2 and never applies one)",
        metavar="P",
    )
    scale_ratio: float = _augment(0.1, "its largest change of scale", metavar="R")
    shear_ratio: float = _augment(0.1, "its largest shear", metavar="R")
    train_flip_p: float = _augment(
        0.0,
        "probability of a flip along each axis in training (the reference declares 0.5 and never flips)",
        metavar="P",
    )
    train_rotate: bool = _augment(False, "turn training images by a random angle")
    train_degree: float = _augment(30.0, "largest angle of --train-rotate", metavar="DEG")
    gain: float = _augment(0.0, "multiply each channel in training by up to this much more or less", metavar="R")
    offset: float = _augment(
        0.0, "add up to this to each channel in training, in units of what the network sees", metavar="R"
    )
    gamma_ratio: float = _augment(
        0.0,
        "raise values in training, between the least and the largest, to a power of up to 1 + R or 1 / (1 + R)",
        metavar="R",
    )
    blur: float = _augment(
        0.0, "blur half of the training images by up to this standard deviation, in pixels", metavar="PX"
    )

    seed: int = _machine(1, "seed of weights, order, augmentation and dropout", metavar="S", result=True)
    amp: bool = _machine(False, "mixed precision in float16 with a loss scaler (CUDA only)", result=True)
    scaler: bool = _machine(False, "accepted for the reference script's sake: --amp always scales its loss")
    bf16: bool = _machine(False, "mixed precision in bfloat16", result=True)
    no_cuda: bool = _machine(False, "stay on the CPU")
    cudnn: bool = _machine(False, "let cuDNN search for its fastest algorithm")
    deterministic: bool = _machine(False, "the same result bit for bit on every run, or an error")
    compile: bool = _machine(False, "torch.compile the network")
    ddp: bool = _machine(False, "distributed data-parallel: --world-size processes, gloo on a CPU and NCCL on GPUs")
    world_size: int = _machine(1, "processes of --ddp", metavar="N", result=True)
    dist_url: str = _machine("", "tcp://HOST:PORT where the processes of --ddp meet", metavar="URL")
    num_workers: int = _machine(0, "processes that load data (0: the main one)", metavar="N")
    threads: int = _machine(0, "threads of PyTorch (0: its own choice)", metavar="N")

    base_log_dir: Path = _run(Path("logs"), "folder of all runs", metavar="DIR")
    exp: str = _run("task", "name of the experiment, a folder in --base-log-dir", metavar="NAME")
    resume: Path | None = _run(
        None,
        "go on from the last checkpoint of this run folder (without RUN: the newest of this data, network and seed)",
        metavar="RUN",
        nargs="?",
        const=Path(),
    )
    log: bool = _run(False, "also write TensorBoard events, if tensorboard is installed")
    log_interval: int = _run(200, "steps between two lines of --log and --wandb", metavar="N")
    log_img: bool = _run(False, "write a picture of the first training batch")
    log_grad_norm: bool = _run(False, "record the norm of the gradient")
    wandb: bool = _run(False, "also log to Weights & Biases")
    save_model: bool = _run(False, "accepted for the reference script's sake: the last checkpoint is always kept")
    save_best: bool = _run(False, "accepted for the reference script's sake: the best on validation is always kept")
    save_rec: bool = _run(False, "keep a checkpoint every --save-interval epochs too")
    save_interval: int = _run(5, "epochs between two checkpoints of --save-rec", metavar="N")
    dry_run: bool = _run(False, "one training and one validation batch, then stop", result=True)
    eval_only: bool = _run(False, "evaluate --load-model without training")
    eval_rot: bool = _run(False, "rotation test of the best checkpoint when training ends")
    eval_flip: bool = _run(False, "flip test of the best checkpoint when training ends")
    eval_interval: int = _run(1000, "epochs between two rotation or flip tests on the validation set", metavar="N")


@dataclass
class TrainOptions(RunOptions):
    """Options of ``sre-triton train``."""

    task: ClassVar[str] = "classification"
    dropped: ClassVar[dict[str, str]] = {
        "--sre-shape": "rings are always round; circular=False of the layer gives the paper's other count of rings",
        "--dev": "the debugging mode of the reference script has no counterpart",
    }

    med_mnist: str = _data(
        "", "MedMNIST set, or the stem of another file of its format (default: patches)", metavar="NAME"
    )
    data_root: Path = _data(Path("~/.medmnist"), "folder of the .npz files", metavar="DIR", result=False)
    image_size: int | None = _data(
        None, "side of the middle square that images of --data are resized to (default: 224)", metavar="N"
    )
    medmnist_size: int = _data(28, "side of the images; 28 is resized to 32", choices=(28, 64, 128, 224))
    balanced_sampler: bool = _data(False, "draw training images with replacement, every class alike")
    multi_label: bool = _data(False, "insist on a multi-label set; without it the file decides")
    download: bool = _data(False, "fetch a missing MedMNIST file", result=False)

    model_type: str = _model(
        "sre_resnet18", "network; `sre-triton models` lists them (default: %(default)s)", metavar="NAME"
    )
    sre_conv_size: int = _model(3, "kernel size of all stages", metavar="K")
    sre_conv_size_list: list[int] | None = _model(
        None, "kernel size of each of the four stages", flags=("--ri-conv-size-list",), metavar="K", nargs="+"
    )
    sre_conv_k: list[int] | None = _model(None, "rings of all stages, or of each", metavar="B", nargs="+")
    res_inplanes: int = _model(64, "channels of the first stage", metavar="C")
    res_keep_conv1: bool = _model(False, "the 5x5 stride-1 stem of the reference script; see the README")
    large_conv: bool = _model(False, "a 7x7 stem")
    maxpool: bool = _model(False, "global max pooling in place of the average")
    dropout_p: float = _model(-1.0, "dropout before the classifier; below 0 there is none", metavar="P")

    moco_aug: bool = _augment(False, "random resized crop (0.5 to 1) and colour in 2-D; scale, shift and blur in 3-D")
    no_aug: bool = _augment(False, "no augmentation, whatever else is asked for")
    translation: bool = _augment(False, "random translation in training")
    translate_ratio: float = _augment(0.2, "its reach, as a share of the side", metavar="R")
    test_translation: bool = _augment(False, "random translation of test images")
    test_translate_ratio: float | None = _augment(None, "its reach (default: --translate-ratio)", metavar="R")
    rotate: bool = _augment(False, "turn test images by a random angle")
    degree: float = _augment(180.0, "largest angle of --rotate, or its angle with --fix-rotate", metavar="DEG")
    fix_rotate: bool = _augment(False, "turn by exactly --degree (and --train-degree)")
    aug_axis: str = _augment("x", "axis that 3-D volumes are turned about", choices=("x", "y", "z"))
    vflip: bool = _augment(False, "flip test images upside down")
    hflip: bool = _augment(False, "flip test images left to right")
    dflip: bool = _augment(False, "flip test volumes front to back")
    pad_size_h: int | None = _augment(None, "pad images to this height", metavar="N")
    pad_size_w: int | None = _augment(None, "pad images to this width", metavar="N")


@dataclass
class SegmentOptions(RunOptions):
    """Options of ``sre-triton segment``."""

    task: ClassVar[str] = "segmentation"
    fallback_optimiser: ClassVar[str] = "adam"

    layout: str = _data("auto", "layout of --data; auto finds it out", choices=LAYOUTS)
    fov: Path | None = _data(
        None, "folder of masks of the field of view for --data, where it has none of its own", metavar="DIR"
    )
    observer: int = _data(1, "whose masks to take of a set that two observers have traced", choices=(1, 2))
    mask_threshold: float | None = _data(
        None, "make two classes of masks, values below it and the others (default: a class per value)", metavar="V"
    )
    vessels_size: int = _data(256, "side of the embedded vessel images", metavar="N")
    vessels_count: list[int] = _data(
        [20, 4, 20], "embedded images to train, validate and test on", metavar="N", nargs="+"
    )
    vessels_seed: int = _data(0, "seed of the embedded vessel images", metavar="S")
    crop_size: int = _data(256, "side of the training crops", metavar="N")
    crops_per_image: int = _data(4, "crops from each image in an epoch", metavar="N")
    window_size: int = _data(
        0, "side of the sliding window (0: --crop-size, or the whole image if it is smaller)", metavar="N", result=False
    )
    test_crop: int = _data(
        0,
        "side of the middle of an image that is tested on, 512 in the reference (0: all of it)",
        metavar="N",
        result=False,
    )
    normalise: str = _data(
        "none",
        "bring each picture to mean 0 and deviation 1, by all pixels or by those that are not black",
        choices=NORMALISATIONS,
    )
    overlap: float = _data(0.5, "share of its side by which a window overlaps the next", metavar="R", result=False)

    model_type: str = _model(
        "sre_unet", "sre_unet, gmr_unet, unet (MONAI's BasicUNet), or monai:NAME (default: %(default)s)", metavar="NAME"
    )
    model_args: str = _model("", "further arguments of the network, as JSON", metavar="JSON")
    tune_threshold: bool = _optimiser(
        False, "of two classes, take the probability from which Dice on validation is best, and keep it"
    )
    loss: str = _optimiser("ce", "cross-entropy, or the sum of Dice and cross-entropy", choices=("ce", "dice-ce"))

    batch_size: int = _optimiser(4, "crops per process and step", flags=("-b",), metavar="N")
    lr: float = _optimiser(5e-4, "learning rate")
    weight_decay: float = _optimiser(0.0, "weight decay", metavar="WD")
    test_batch_size: int = _turn(4, "windows per evaluated batch", metavar="N", result=False)


@dataclass
class EvaluateOptions(TurningOptions):
    """Options of ``sre-triton evaluate``."""

    split: str = _data("test", "what to evaluate on", choices=("train", "val", "test", "all"))
    data_root: Path | None = _data(None, "folder of the .npz files (default: as in training)", metavar="DIR")
    data: Path | None = _data(None, "folder or CSV of images (default: as in training)", metavar="PATH")
    fov: Path | None = _data(None, "folder of masks of the field of view for --data", metavar="DIR")
    step_degrees: float | None = _turn(
        None, "degrees between two angles (default: 10 in 2-D, 30 in 3-D)", metavar="DEG"
    )
    no_flips: bool = _turn(False, "leave out the flip test")
    names: list[str] | None = _turn(
        None, "names of the checkpoints in the table and the picture", metavar="NAME", nargs="+"
    )
    test_batch_size: int = _turn(0, "images per evaluated batch (0: as in training)", metavar="N", result=False)
    no_cuda: bool = _machine(False, "stay on the CPU")
    threads: int = _machine(0, "threads of PyTorch (0: its own choice)", metavar="N")
    output: Path | None = _run(
        None, "folder of the table, the figures and the picture (default: the first run folder)", metavar="DIR"
    )


@dataclass
class CompareOptions:
    """Options of ``sre-triton compare`` beside those of the training command that it repeats."""

    models: list[str] | None = option(
        None,
        "networks to compare (default: the ring network and its plain twin)",
        group="comparison",
        metavar="NAME",
        nargs="+",
    )
    seeds: list[int] = option([1, 2, 3], "seeds to train each with", group="comparison", metavar="S", nargs="+")
    jobs: int = option(
        1,
        "trainings at the same time, each in a process of its own (on a CPU: with --threads 1)",
        group="comparison",
        metavar="N",
    )
    output: Path = option(
        Path("comparison"),
        "folder of the runs, tables and the picture; run again to go on",
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
    batch: int = option(8, "pictures of one size to answer at a time", group="prediction", metavar="N")
    masks: Path | None = option(None, "folder of masks to score a segmentation by", group="prediction", metavar="DIR")
    fov: Path | None = option(
        None,
        "folder of masks of the field of view, inside which --masks are scored too",
        group="prediction",
        metavar="DIR",
    )
    max_value: float | None = option(
        None, "stored value of white (default: 255 or 65535 by type, 1 for floats)", group="prediction", metavar="V"
    )
    no_cuda: bool = option(False, "stay on the CPU", group="prediction")
    threads: int = option(0, "threads of PyTorch (0: its own choice)", group="prediction", metavar="N")


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
    channels: int = option(4, "feature maps to show, those of largest variance", group="visualization", metavar="N")
    size: int = option(
        0, "side that the image is resized to (default: as in training)", group="visualization", metavar="N"
    )
    interpolation: str = option(
        "bilinear", "interpolation of turned images", group="visualization", choices=("nearest", "bilinear", "bicubic")
    )
    no_cuda: bool = option(False, "stay on the CPU", group="visualization")
