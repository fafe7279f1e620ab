"""The folder of a run: what is in it, how it is found again, and how a training leaves it whole at any moment.

config.json      every option, and what the data were
versions.json    of Python, the packages and the machine
metrics.csv      one row per epoch
logs.json        the same by column, with the results of rotation and flip tests
curves.png       the same as a picture
last.ckpt        after every epoch, and where Ctrl-C came; training goes on from here
best.ckpt        best epoch on the validation set
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from sre_triton.training.files import read_json, replacing, sweep, write_csv, write_json
from sre_triton.training.options import RunOptions, from_dict, result_options, to_dict
from sre_triton.training.runs.interruption import Interrupted

__all__ = [
    "AtomicCheckpoints",
    "Interruption",
    "Recorder",
    "RunFolder",
    "checkpoint_in",
    "read_checkpoint",
]

_FOLDER_VARIABLE = "SRE_TRITON_RUN_FOLDER"  # tells the processes that Lightning starts which folder theirs is


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def last(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.path / "best.ckpt"

    @classmethod
    def choose(cls, options: RunOptions, data: str) -> RunFolder:
        """The folder that ``--base-log-dir``, ``--exp`` and ``--resume`` ask for, new unless it is resumed.

        Raises:
            FileNotFoundError: there is nothing to resume.
        """
        if _FOLDER_VARIABLE in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0:
            return cls(Path(os.environ[_FOLDER_VARIABLE]))
        stem = f"{data}-{options.model_type.replace(':', '-')}-seed{options.seed}"
        home = options.base_log_dir / options.exp
        if options.resume is None:
            path, number = home / stem, 1
            while path.exists():
                number += 1
                path = home / f"{stem}-{number}"
        elif options.resume != Path():
            path = options.resume if options.resume.is_dir() else options.resume.parent
        else:
            runs = [path for path in home.glob(f"{stem}*") if (path / "config.json").is_file()]
            if not runs:
                raise FileNotFoundError(f"--resume: there is no run {home / stem} to go on from")
            path = max(runs, key=lambda run: (run / "config.json").stat().st_mtime)
        if options.resume is not None and not (path / "config.json").is_file():
            raise FileNotFoundError(f"--resume {path}: there is no config.json, so this is not a run folder")
        return cls(path)

    def announce(self) -> None:
        """Tells the processes that are started from here that this is their folder."""
        os.environ[_FOLDER_VARIABLE] = str(self.path)

    def begin(self, options: RunOptions, description: dict[str, Any]) -> None:
        """Writes the configuration; of a resumed run, checks that nothing that changes its result differs.

        Raises:
            ValueError: an option differs; names it and both values.
        """
        config = self.path / "config.json"
        if config.is_file():
            then = result_options(from_dict(type(options), read_json(config)["options"]))
            now = result_options(options)
            for name, value in now.items():
                if then[name] != value:
                    flag = "--" + name.replace("_", "-")
                    raise ValueError(
                        f"{self.path} was begun with {flag} {then[name]}, not {value}: resume with the same"
                    )
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        write_json(config, {**description, "options": to_dict(options)})
        write_json(self.path / "versions.json", versions())


def versions() -> dict[str, str]:
    """What a result was computed with."""
    from sre_triton import __version__

    packages = {}
    for name in ("torch", "numpy", "triton", "lightning", "torchmetrics", "monai", "scikit-image"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "sre_triton": __version__,
        "python": platform.python_version(),
        **packages,
        "system": platform.platform(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and then puts it in its place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as partial:
            try:
                torch.save(checkpoint, partial)
            except RuntimeError as error:  # PyTorch's own writer reports a full disk so
                raise OSError(str(error)) from error


def checkpoint_in(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the best (else the last) of a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"{path} holds neither best.ckpt nor last.ckpt")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a checkpoint or a run folder")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this package; nothing in it is executed.

    Raises:
        ValueError: it is damaged or none of ours.
    """
    import pickle

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a whole checkpoint: {reason}") from error
    if not isinstance(content, dict) or "sre_triton" not in content:
        raise ValueError(f"{path} was not written by `sre-triton train` or `segment`: it has no key 'sre_triton'")
    return content


class Interruption(Callback):
    """Ctrl-C (SIGINT) and SIGTERM end a training at the next step, after saving; a second Ctrl-C ends it at once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.asked = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watches for the signals."""

        def ask(number: int, frame: Any) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The last batch's checkpoint is the epoch's, after validation.
        if self._any_asked(trainer) and not trainer.is_last_batch:
            trainer.save_checkpoint(self.folder.last)
            raise self._stopped(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and trainer.current_epoch > 0 and self._any_asked(trainer):
            raise self._stopped(trainer)  # the epoch before has just been saved

    def _stopped(self, trainer: Trainer) -> Interrupted:
        return Interrupted(
            f"stopped in epoch {trainer.current_epoch + 1} of {trainer.max_epochs}; everything is saved in "
            f"{self.folder.path}: go on with the same command and --resume {self.folder.path} "
            "(`compare` goes on by itself)"
        )

    def _any_asked(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop: all stop at the same step, else some would wait for ever."""
        if trainer.world_size == 1:
            return self.asked
        asked = torch.tensor(float(self.asked), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(asked, reduce_op="sum"))


class Recorder(Callback):
    """Keeps the table of epochs, in the checkpoint and in the folder, and prints a line of each if ``lines``.

    Attributes:
        tests: of an epoch's number, what else is to be measured at its end.
    """

    def __init__(self, folder: RunFolder, first_epoch: int = 0, *, lines: bool = True) -> None:
        self.folder = folder
        self.lines = lines
        self.first_epoch = first_epoch
        self.rows: list[dict[str, Any]] = []
        self.tests: Callable[[int], dict[str, float]] = lambda epoch: {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = {"epoch": self.first_epoch + trainer.current_epoch + 1, "lr": self._rate}
        row |= pl_module.training_row()  # type: ignore[operator]
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name != "loss"}
        if trainer.is_global_zero:
            row |= self.tests(int(row["epoch"]))
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics({name.replace("_", "/", 1): value for name, value in row.items()}, trainer.global_step)
        if trainer.is_global_zero:
            self.write()
            if self.lines:
                print(_line(row, trainer.max_epochs), flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # a run resumed in mid-epoch misses the epoch's start

    def write(self, **tests: Any) -> None:
        """Writes ``metrics.csv`` and ``logs.json``, the latter with results of tests."""
        if not self.rows:
            return
        write_csv(self.folder.path / "metrics.csv", self.rows)
        columns = dict.fromkeys(key for row in self.rows for key in row)
        logs = {name: [row.get(name) for row in self.rows] for name in columns}
        write_json(self.folder.path / "logs.json", {**logs, **tests})


def _line(row: dict[str, Any], epochs: int | None) -> str:
    shown = {name: value for name, value in row.items() if name.endswith(("loss", "accuracy", "auc", "dice"))}
    return f"epoch {row['epoch']}/{epochs}  " + "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
