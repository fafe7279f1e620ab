"""The training commands of ``sre-triton``: their arguments, and what is run for each.

Importing this reads no heavy library: those are imported when a command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sre_triton.training.files import FIGURE_FORMATS, read_json, require_file, require_writable
from sre_triton.training.options import (
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    RunOptions,
    SegmentOptions,
    TrainOptions,
    VisualizeOptions,
)
from sre_triton.training.parser import CommandParser
from sre_triton.training.schema import add_arguments, from_dict, from_namespace

__all__ = ["add_commands"]


_TRAINED: dict[str, type[RunOptions]] = {"train": TrainOptions, "segment": SegmentOptions}


def add_commands(commands: Any) -> None:
    """Adds the training commands to the command line."""
    _add_training(
        commands,
        "train",
        "train a classifier on your own images or a MedMNIST set",
        (
            "sre-triton train --data photos --epochs 50 --cos",
            "sre-triton train --med-mnist bloodmnist --download --sre-conv-size-list 9 9 5 5",
            "sre-triton train --resume logs/task/RUN",
        ),
    )
    _add_training(
        commands,
        "segment",
        "train a segmentation on your own images or a known set",
        (
            "sre-triton segment --data DRIVE --epochs 100 --cos --loss dice-ce",
            "sre-triton segment --data CHASE_DB1 --model-type unet --seed 2",
            "sre-triton segment --resume logs/task/RUN",
        ),
    )
    parser = _add(
        commands,
        "evaluate",
        "test trained networks on turned and flipped images",
        _evaluate,
        operands="RUN [RUN ...] [OPTION ...]",
        examples=(
            "sre-triton evaluate logs/task/RUN",
            "sre-triton evaluate RUN_A RUN_B --names ring ordinary --output both",
            "sre-triton evaluate logs/task/RUN --data OTHER --split all --step-degrees 45",
        ),
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="RUN", help="run folders or checkpoints")
    add_arguments(parser, EvaluateOptions)
    _add_compare(commands)
    parser = _add(
        commands,
        "predict",
        "let a trained network answer for pictures",
        _predict,
        operands="MODEL INPUT [INPUT ...] [OPTION ...]",
        examples=(
            "sre-triton predict logs/task/RUN new --output answers",
            "sre-triton predict vessels fundus.png",
            "sre-triton predict logs/task/RUN new --masks traced --tta",
        ),
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="run folder, checkpoint or pretrained network")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="picture files, or folders of them")
    add_arguments(parser, PredictOptions)
    parser = _add(
        commands,
        "export",
        "write a trained network as ONNX or another format",
        _export,
        operands="RUN [OPTION ...]",
        examples=(
            "sre-triton export logs/task/RUN",
            "sre-triton export logs/task/RUN --format torchscript --output network.pt",
            "sre-triton export vessels --output vessels.onnx",
        ),
    )
    parser.add_argument("model", type=Path, metavar="RUN", help="run folder, checkpoint or pretrained network")
    add_arguments(parser, ExportOptions)
    parser = _add(
        commands,
        "visualize",
        "show what a network sees while an image turns",
        _visualize,
        operands="IMAGE --checkpoint RUN [OPTION ...]",
        examples=(
            "sre-triton visualize fundus.png --checkpoint logs/task/RUN",
            "sre-triton visualize cell.png --checkpoint logs/task/RUN --step-degrees 5",
            "sre-triton visualize fundus.png --checkpoint RUN --against OTHER_RUN --mask mask.png",
        ),
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="picture to turn")
    add_arguments(parser, VisualizeOptions)
    parser = _add(
        commands,
        "demo",
        "see it work: two networks, a turned photograph (minutes)",
        _demo,
        examples=("sre-triton demo", "sre-triton demo --output shown", "sre-triton demo --seed 2"),
    )
    parser.add_argument("--output", type=Path, default=Path("logs/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training (default: %(default)s)")
    parser.add_argument("--figure-format", choices=FIGURE_FORMATS, default="png", help="of figures; films are GIF")


def _add(
    commands: Any, name: str, about: str, run: Callable[[argparse.Namespace], object], **settings: Any
) -> CommandParser:
    parser: CommandParser = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}.", **settings
    )
    parser.set_defaults(run=run)
    return parser


def _add_training(commands: Any, name: str, about: str, examples: Sequence[str]) -> None:
    parser = _add(commands, name, about, _run, examples=examples)
    add_arguments(parser, _TRAINED[name])
    parser.defaults_from = _begun_options
    parser.set_defaults(options=_TRAINED[name])


def _add_compare(commands: Any) -> None:
    about = "train networks over several seeds, test and compare them"
    examples = (
        "sre-triton compare train --med-mnist bloodmnist --epochs 20 --cos",
        "sre-triton compare segment --data DRIVE --models sre_unet plain_unet --tune 5e-4 2e-3 8e-3",
        "sre-triton compare train --config RUN/config.json --jobs 2 --threads 1",
    )
    parser = _add(commands, "compare", about, _compare, operands="train|segment [OPTION ...]", examples=examples)
    trained = parser.add_subparsers(
        required=True, dest="trained", metavar="train|segment", title="what is trained", prog=parser.prog
    )
    for name, options in _TRAINED.items():
        sub = trained.add_parser(
            name,
            help=f"networks of `sre-triton {name}`, with all of its options",
            description=f"{about[0].upper()}{about[1:]}.\nAll options of `sre-triton {name}` count here, too.",
            examples=examples,
        )
        add_arguments(sub, CompareOptions, dest_prefix="compare_")
        own = set(sub.rare)
        add_arguments(sub, options)
        sub.rare = own | {entry.name for entry in dataclasses.fields(options)}
        sub.defaults_from = _begun_options
        sub.set_defaults(run=_compare, options=options)
        parser.shown = [group for group in sub._action_groups if group.title == "comparison"]


def _begun_options(given: argparse.Namespace) -> dict[str, Any]:
    """The options of ``--config FILE`` and ``--resume RUN``, as defaults of those that are not given.

    Raises:
        ValueError: both are given, or the file is of another command or not as ``config.json`` is written.
        OSError: it is missing.
    """
    resumed = given.resume is not None and given.resume != Path()
    if given.config is None and not resumed:
        return {}
    if resumed and given.config is not None:
        raise ValueError(f"--resume {given.resume} has its own options: leave out --config {given.config}")
    from sre_triton.training.runs.folder import folder_of

    if resumed:
        config = folder_of(given.resume) / "config.json"
        if not config.is_file():
            raise FileNotFoundError(f"--resume {given.resume}: there is no {config}, so this is not a run folder")
    else:
        config = given.config
        require_file(config, "--config")
    content = read_json(config)
    if not isinstance(content, dict) or not isinstance(content.get("options"), dict):
        raise ValueError(f'{config} is no config.json of a run: it has no "options"')
    if content.get("task") != given.options.task:
        command = next((name for name, kind in _TRAINED.items() if kind.task == content.get("task")), None)
        raise ValueError(f"{config} is of `sre-triton {command}`, not of `{given.parser.prog}`")
    begun = from_dict(given.options, content["options"])
    defaults = {
        entry.name: getattr(begun, entry.name)
        for entry in dataclasses.fields(begun)
        if entry.name not in ("resume", "config")
    }
    if "compare_output" in given and isinstance(content.get("comparison"), dict):
        compared = from_dict(CompareOptions, content["comparison"])
        names = (entry.name for entry in dataclasses.fields(compared) if entry.name != "output")
        defaults |= {f"compare_{name}": getattr(compared, name) for name in names}
    return defaults


def _run(arguments: argparse.Namespace) -> None:
    from sre_triton.training.train import train

    train(from_namespace(arguments.options, arguments))


def _evaluate(arguments: argparse.Namespace) -> None:
    from sre_triton.training.evaluation.evaluate import evaluate
    from sre_triton.training.runs.fitting import prepare_machine

    prepare_machine(threads=arguments.threads)
    evaluate(arguments.checkpoints, from_namespace(EvaluateOptions, arguments))


def _compare(arguments: argparse.Namespace) -> None:
    from sre_triton.training.evaluation.compare import compare
    from sre_triton.training.runs.fitting import prepare_machine

    options = from_namespace(arguments.options, arguments)
    prepare_machine(threads=options.threads, deterministic=options.deterministic, cudnn=options.cudnn)
    compare(options, from_namespace(CompareOptions, arguments, dest_prefix="compare_"))


def _predict(arguments: argparse.Namespace) -> None:
    from sre_triton.training.predict import predict
    from sre_triton.training.runs.fitting import prepare_machine

    prepare_machine(threads=arguments.threads)
    predict(arguments.model, arguments.inputs, from_namespace(PredictOptions, arguments))


def _export(arguments: argparse.Namespace) -> None:
    from sre_triton.training.runs.deployment.export import export

    path = export(arguments.model, from_namespace(ExportOptions, arguments))
    if not arguments.quiet:
        print(path)


def _visualize(arguments: argparse.Namespace) -> None:
    from sre_triton.training.evaluation.visualize import visualize_image

    require_writable(arguments.output, "--output")
    visualize_image(arguments.image, from_namespace(VisualizeOptions, arguments))


def _demo(arguments: argparse.Namespace) -> None:
    from sre_triton.training.evaluation.demo import run_demo

    require_writable(arguments.output, "--output")
    run_demo(arguments.output, arguments.seed, figure_format=arguments.figure_format)
