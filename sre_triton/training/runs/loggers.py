"""TensorBoard and Weights & Biases: both get the configuration, the table of epochs and the pictures of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sre_triton.training.options import RunOptions
from sre_triton.training.runs.folder import RunFolder
from sre_triton.training.runs.progress import Speech

__all__ = ["loggers", "show_pictures"]


def loggers(options: RunOptions, folder: RunFolder, speech: Speech) -> list[Any]:
    """The loggers that are asked for. ``--log`` without TensorBoard is a line, as scripts of others have it.

    Raises:
        ValueError: Weights & Biases is not installed.
    """
    found: list[Any] = []
    if options.log:
        if importlib.util.find_spec("tensorboard") is None:
            speech.say(
                "--log: no TensorBoard events, as tensorboard is not installed "
                "(pip install 'sre-triton[tensorboard]'); metrics.csv has the same numbers"
            )
        else:
            from lightning.pytorch.loggers import TensorBoardLogger

            found.append(TensorBoardLogger(str(folder.path), name="", version="tensorboard"))
    if options.wandb:
        if importlib.util.find_spec("wandb") is None:
            raise ValueError("--wandb: wandb is not installed (pip install 'sre-triton[wandb]')")
        from lightning.pytorch.loggers import WandbLogger

        found.append(WandbLogger(name=folder.path.name, save_dir=str(folder.path), project="sre_triton"))
    return found


def show_pictures(trained: list[Any], pictures: Mapping[str, Path], step: int) -> None:
    """Gives the pictures of a run to its loggers, those that are PNG files and there.

    Args:
        trained: the loggers of the training.
        pictures: paths by name.
        step: of the optimiser, at which they are shown.
    """
    there = {name: path for name, path in pictures.items() if path.suffix == ".png" and path.is_file()}
    for logger in trained:
        for name, path in there.items():
            if hasattr(logger, "log_image"):
                logger.log_image(name, [str(path)])  # W&B counts its steps itself and forbids to go back
            else:
                logger.experiment.add_image(name, _pixels(path), step, dataformats="HWC")


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
