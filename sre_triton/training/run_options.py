"""The options that training a classifier and training a segmentation network share."""

from __future__ import annotations

from dataclasses import dataclass
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

__all__ = ["RunOptions", "TurningOptions"]


@dataclass
class TurningOptions:
    """How images are turned, in the rotation test as in augmentation."""

    interpolation: str = _turn(
        "nearest", "interpolation of turned images", choices=("nearest", "bilinear", "bicubic"), result=True
    )
    padding: str = _turn("zeros", "what comes in from outside", choices=("zeros", "reflect"), result=True)
    expand: bool = _turn(False, "enlarge the frame so that a turned image fits in it")
    reference_protocol: bool = _reference(False, "count 0 and 360 degrees both in the mean over angles")
    test_batch_size: int = _turn(1000, "images per evaluated batch", metavar="N", result=False, least=1)


@dataclass
class RunOptions(TurningOptions):
    """What training a classifier and training a segmentation network have in common."""

    task: ClassVar[str]  # name of the task in tasks.TASKS
    command: ClassVar[str]  # that trains it
    fallback_optimiser: ClassVar[str] = "adadelta"

    data: Path | None = _data(None, "your own images: a folder or a CSV table", metavar="PATH", common=True)
    split: Path | None = _data(
        None, "CSV with the columns image and split (train, val or test) for the images of --data", metavar="FILE"
    )
    val_fraction: float | None = _data(
        None, "share of --data to validate on, where it is not divided (default: 0.2)", metavar="R", least=0, below=1
    )
    test_fraction: float | None = _data(
        None, "share of --data to test on, where it is not divided (default: 0.2)", metavar="R", least=0, below=1
    )
    split_seed: int = _data(0, "seed of this division", metavar="S", least=0)
    group: str = _data(
        "",
        "regular expression that finds the person in an image's name; images of a person are not divided",
        metavar="REGEX",
    )
    max_value: float | None = _data(
        None, "stored value of white (default: 255 or 65535 by type, 1 for floats)", metavar="V", above=0
    )
    cache: int = _data(
        1024,
        "MB of read images of --data to keep in memory, by all processes together",
        metavar="MB",
        result=False,
        least=0,
    )

    model_type: str = _model("", "network; `sre-triton models` lists them", metavar="NAME")
    model_args: str = _model("", "further arguments of the network, as JSON", metavar="JSON")
    norm_layer: str = _model("batch", "normalisation", choices=("batch", "group", "instance"))
    invariants: bool = _model(False, "let ring networks see lines, by scalars of derivatives", common=True)

    batch_size: int = _optimiser(64, "images per process and step", flags=("-b",), metavar="N", common=True, least=1)
    epochs: int = _optimiser(100, "passes over the training set", metavar="N", common=True, least=1)
    lr: float = _optimiser(2e-2, "learning rate", metavar="RATE", common=True, above=0)
    min_lr: float = _optimiser(1e-6, "learning rate at the end of --cos", least=0)
    weight_decay: float = _optimiser(1e-3, "weight decay; Adadelta has none", metavar="WD", least=0)
    momentum: float = _optimiser(0.9, "momentum of --sgd", least=0, below=1)
    sgd: bool = _optimiser(
        False, "SGD with momentum; without --sgd, --adam or --adamW `train` takes Adadelta and `segment` Adam"
    )
    adam: bool = _optimiser(False, "Adam", common=True)
    adamW: bool = _optimiser(False, "AdamW")  # noqa: N815 - the spelling of the authors' script
    balance_rings: bool = _optimiser(False, "let all rings learn at one pace; see the README", common=True)
    cos: bool = _optimiser(False, "cosine schedule from --lr to --min-lr", common=True)
    one_cycle: bool = _optimiser(False, "one cycle: up to --lr over 0.3 of all steps, then down to a ten-thousandth")
    step: bool = _optimiser(False, "multiply the rate by --gamma every --step-size epochs")
    multi_step: bool = _optimiser(False, "divide the rate by 10 at the epochs of --milestones")
    milestones: list[int] = _optimiser([50, 75], "epochs of --multi-step", metavar="N", nargs="+", least=1)
    gamma: float = _optimiser(0.7, "factor of --step", above=0)
    step_size: int = _optimiser(10, "epochs between two steps of --step", metavar="N", least=1)
    warm_up: int = _optimiser(0, "epochs over which the rate rises to the schedule's", metavar="N", least=0)
    accumulate: int = _optimiser(1, "batches whose gradients make a step", metavar="N", least=1)
    label_smoothing: float = _optimiser(
        0.0, "share of each label that is spread over all classes", metavar="R", least=0, below=1
    )
    class_weights: list[str] | None = _optimiser(
        None,
        "weight of each class in the loss, or `balanced`: the inverse of its share of the training set",
        metavar="W",
        nargs="+",
    )
    early_stop: int = _optimiser(
        0, "end after so many epochs that were no better on validation (0: never)", metavar="N", least=0
    )
    ema: float = _optimiser(
        0.0,
        "validate and keep a moving average of the weights, which decays by this factor each step",
        metavar="D",
        least=0,
        below=1,
    )
    cur_ep: int = _optimiser(0, "epochs that the weights of --load-model have already had", metavar="N", least=0)
    load_model: Path | None = _optimiser(None, "begin from the weights of a run or checkpoint", metavar="PATH")

    affine_prob: float = _augment(0.0, "probability of a random affine map in training", metavar="P", least=0, most=1)
    scale_ratio: float = _augment(0.1, "its largest change of scale", metavar="R", least=0, below=1)
    shear_ratio: float = _augment(
        0.1, "its largest shear of each axis; two of opposite sign turn, by up to arctan(R)", metavar="R", least=0
    )
    train_flip_p: float = _augment(
        0.0, "probability of a flip along each axis in training", metavar="P", least=0, most=1
    )
    train_rotate: bool = _augment(False, "turn training images by a random angle")
    train_degree: float = _augment(30.0, "largest angle of --train-rotate", metavar="DEG")
    gain: float = _augment(
        0.0, "multiply each channel in training by up to this much more or less", metavar="R", least=0, below=1
    )
    offset: float = _augment(
        0.0, "add up to this to each channel in training, in units of what the network sees", metavar="R", least=0
    )
    gamma_ratio: float = _augment(
        0.0,
        "raise values in training, between the least and the largest, to a power of up to 1 + R or 1 / (1 + R)",
        metavar="R",
        least=0,
    )
    blur: float = _augment(
        0.0, "blur half of the training images by up to this standard deviation, in pixels", metavar="PX", least=0
    )

    seed: int = _optimiser(1, "seed of all that is random", metavar="S", common=True)
    amp: bool = _machine(False, "mixed precision in float16 with a loss scaler (CUDA only)", result=True)
    bf16: bool = _machine(False, "mixed precision in bfloat16", result=True)
    no_cuda: bool = _machine(False, "stay on the CPU")
    cudnn: bool = _machine(False, "let cuDNN search for its fastest algorithm")
    deterministic: bool = _machine(False, "the same result bit for bit on every run, or an error")
    compile: bool = _machine(False, "torch.compile the network")
    ddp: bool = _machine(False, "distributed data-parallel: --world-size processes, gloo on a CPU and NCCL on GPUs")
    world_size: int = _machine(1, "processes of --ddp", metavar="N", result=True, least=1)
    dist_url: str = _machine("", "tcp://HOST:PORT where the processes of --ddp meet", metavar="URL")
    num_workers: int = _machine(0, "processes that load data (0: the main one)", metavar="N", least=0)
    threads: int = _machine(0, "threads of PyTorch (0: its own choice)", metavar="N", least=0)

    base_log_dir: Path = _run(Path("logs"), "folder of all runs", metavar="DIR")
    exp: str = _run("task", "experiment, a folder in --base-log-dir", metavar="NAME")
    resume: Path | None = _run(
        None,
        "go on with this run, which knows its options",
        metavar="RUN",
        nargs="?",
        const=Path(),
        common=True,
    )
    config: Path | None = _run(None, "take the options of a run's config.json", metavar="FILE", common=True)
    quiet: bool = _run(False, "print errors alone", common=True)
    log: bool = _run(False, "also write TensorBoard events, if tensorboard is installed")
    log_interval: int = _run(200, "steps between two lines of --log and --wandb", metavar="N", least=1)
    figure_format: str = _run("png", "format of figures", choices=FIGURE_FORMATS)
    log_img: bool = _run(False, "write a picture of the first training batch")
    log_grad_norm: bool = _run(False, "record the norm of the gradient")
    wandb: bool = _run(False, "also log to Weights & Biases")
    save_rec: bool = _run(False, "keep a checkpoint every --save-interval epochs too")
    save_interval: int = _run(5, "epochs between two checkpoints of --save-rec", metavar="N", least=1)
    dry_run: bool = _run(False, "one training and one validation batch, then stop", result=True)
    no_test: bool = _run(False, "leave out the test at the end, as while options are sought")
    eval_only: bool = _run(False, "evaluate --load-model without training")
    eval_rot: bool = _turn(False, "rotation test of the best epoch at the end", result=False, common=True)
    eval_flip: bool = _turn(False, "flip test of the best epoch at the end", result=False)
    eval_interval: int = _run(
        1000, "epochs between two rotation or flip tests on the validation set", metavar="N", least=1
    )

    scaler: bool = _reference(False, "changes nothing: --amp always scales its loss")
    save_model: bool = _reference(False, "changes nothing: the last checkpoint is always kept")
    save_best: bool = _reference(False, "changes nothing: the best checkpoint on validation is always kept")
