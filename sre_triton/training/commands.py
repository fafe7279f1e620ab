"""The training commands of ``sre-triton``: their arguments, and what is run for each.

Importing this reads no heavy library: those are imported when a command runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
from sre_triton.training.schema import add_arguments, from_namespace

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Adds the training commands to the command line."""
    about = {
        "train": "train a classifier on your own images, a MedMNIST set or the embedded patches",
        "segment": "train a segmentation on your own images, a known set or the embedded vessels",
    }
    kinds: dict[str, type[RunOptions]] = {"train": TrainOptions, "segment": SegmentOptions}
    for name, options in kinds.items():
        parser = commands.add_parser(name, help=about[name], description=about[name], allow_abbrev=False)
        add_arguments(parser, options)
        parser.set_defaults(run=_run, options=options)

    text = "rotation and flip test of checkpoints: table, CSV, JSON and a picture"
    parser = commands.add_parser("evaluate", help=text, description=text, allow_abbrev=False)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CKPT", help="checkpoints or run folders")
    add_arguments(parser, EvaluateOptions)
    parser.set_defaults(run=_evaluate)

    text = "train several networks over several seeds, and compare them"
    parser = commands.add_parser("compare", help=text, description=text, allow_abbrev=False)
    trained = parser.add_subparsers(required=True, metavar="train|segment")
    for name, options in kinds.items():
        sub = trained.add_parser(name, help=f"compare by `sre-triton {name}`", description=text, allow_abbrev=False)
        add_arguments(sub, CompareOptions, dest_prefix="compare_")
        add_arguments(sub, options)
        sub.set_defaults(run=_compare, options=options)

    text = "answers of a trained network on pictures: a table, and masks of a segmentation"
    parser = commands.add_parser("predict", help=text, description=text, allow_abbrev=False)
    parser.add_argument("model", type=Path, metavar="MODEL", help="run folder, checkpoint or pretrained network")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="picture files, or folders of them")
    add_arguments(parser, PredictOptions)
    parser.set_defaults(run=_predict)

    text = "a trained network as a file that runs without this package, checked in the format's own runtime"
    parser = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    parser.add_argument("model", type=Path, metavar="RUN", help="run folder, checkpoint or pretrained network")
    add_arguments(parser, ExportOptions)
    parser.set_defaults(run=_export)

    text = "Grad-CAM and feature maps of a network over a turning image, and its kernels"
    parser = commands.add_parser("visualize", help=text, description=text, allow_abbrev=False)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="picture to turn")
    add_arguments(parser, VisualizeOptions)
    parser.set_defaults(run=_visualize)

    text = "a pretrained network and two that learn drawn vessels are shown a photograph turned (two minutes)"
    parser = commands.add_parser("demo", help=text, description=text, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("logs/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training (default: %(default)s)")
    parser.set_defaults(run=_demo)


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

    print(export(arguments.model, from_namespace(ExportOptions, arguments)))


def _visualize(arguments: argparse.Namespace) -> None:
    from sre_triton.training.evaluation.visualize import visualize_image

    visualize_image(arguments.image, from_namespace(VisualizeOptions, arguments))


def _demo(arguments: argparse.Namespace) -> None:
    from sre_triton.training.evaluation.demo import run_demo

    run_demo(arguments.output, arguments.seed)
