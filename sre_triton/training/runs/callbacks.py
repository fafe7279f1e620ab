"""Callbacks of a training: its table of epochs, checkpoints that are whole, and the stop that a user asks for."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from sre_triton.training.files import in_percent, replacing, write_csv, write_json
from sre_triton.training.runs.folder import RunFolder, first_line
from sre_triton.training.runs.interruption import Interrupted
from sre_triton.training.runs.progress import Speech, epoch_line
from sre_triton.training.tasks.task import STEPS_BETWEEN_CHECKS

__all__ = ["AtomicCheckpoints", "EarlyStop", "Interruption", "Recorder"]


_SMALL = 64 * 2**20  # bytes: a disk with less has no room for a checkpoint


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and then puts it in its place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as partial:
            try:
                torch.save(checkpoint, partial)
            except RuntimeError as error:  # PyTorch's own writer reports a full disk so, without the reason
                free = shutil.disk_usage(partial.parent).free
                reason = errno.ENOSPC if free < _SMALL else errno.EIO
                raise OSError(reason, f"{os.strerror(reason)}: {first_line(error)}") from error


class Interruption(Callback):
    """Ctrl-C (SIGINT) and SIGTERM end a training at the next step (of several processes, at one of the next ten), after
    saving; a second Ctrl-C ends it at once."""

    def __init__(self, folder: RunFolder, command: str = "train") -> None:
        self.folder = folder
        self.command = command
        self.asked = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watches for the signals, which only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

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
        # The last batch's checkpoint is the epoch's, after validation. Gradients of half a step are not saved.
        steps, half = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        asked_now = half == 0 and (trainer.world_size == 1 or steps % STEPS_BETWEEN_CHECKS == 0)
        if asked_now and not trainer.is_last_batch and self._any_asked(trainer):
            pl_module.require_finite()  # type: ignore[operator]
            trainer.save_checkpoint(self.folder.last)
            raise self._stopped(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and trainer.current_epoch > 0 and self._any_asked(trainer):
            raise self._stopped(trainer)  # the epoch before has just been saved

    def _stopped(self, trainer: Trainer) -> Interrupted:
        return Interrupted(
            f"stopped in epoch {trainer.current_epoch + 1} of {trainer.max_epochs}; everything is saved in "
            f"{self.folder.path}; go on with: sre-triton {self.command} --resume "
            f"{shlex.quote(str(self.folder.path))} (`compare` goes on by itself)"
        )

    def _any_asked(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop: all stop at the same step, else some would wait for ever."""
        if trainer.world_size == 1:
            return self.asked
        asked = torch.tensor(float(self.asked), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(asked, reduce_op="sum"))


class EarlyStop(EarlyStopping):
    """Ends a training that gets no better; one that it has ended is not gone on with when it is resumed."""

    def __init__(self, monitor: str, patience: int, speech: Speech) -> None:
        super().__init__(monitor, patience=patience, mode="max", check_finite=False)
        self.speech = speech

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.stopped_epoch and trainer.is_global_zero:
            self.speech.say(f"no better for {self.patience} epochs: stopped after epoch {trainer.current_epoch + 1}")


class Recorder(Callback):
    """Keeps the table of epochs, in the checkpoint and in the folder, and says a line of each.

    Attributes:
        tests: called in every process with the number of each finished epoch; returns further columns of its row.
        pictures: called with the paths of pictures by name, for the loggers of a training that has ended.
    """

    def __init__(self, folder: RunFolder, monitor: str, first_epoch: int = 0, speech: Speech | None = None) -> None:
        self.folder = folder
        self.monitor = monitor
        self.speech = speech or Speech()
        self.first_epoch = first_epoch
        self.rows: list[dict[str, Any]] = []
        self.tests: Callable[[int], dict[str, float]] = lambda epoch: {}
        self.pictures: Callable[[Mapping[str, Path]], None] = lambda paths: None
        self._rate: float | None = None
        self._seconds: list[float] = []
        self._begun = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "rate": self._rate, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._rate = state_dict.get("rate")
        self._seconds = list(state_dict.get("seconds", []))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: dict[str, Any] = {"epoch": self.first_epoch + trainer.current_epoch + 1, "lr": self._rate}
        row |= pl_module.training_row()  # type: ignore[operator]
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name != "loss"}
        row |= self.tests(int(row["epoch"]))
        self.rows.append(row)
        self._seconds.append(time.perf_counter() - self._begun)
        for logger in trainer.loggers:
            named = {name.replace("_", "/", 1): value for name, value in in_percent(row).items()}
            logger.log_metrics(named, trainer.global_step)
        if trainer.is_global_zero:
            self.write()
            self.folder.note_seconds(self._seconds)
            epochs = self.first_epoch + (trainer.max_epochs or 0)
            self.speech.say(epoch_line(row, self.rows[:-1], self.monitor, epochs, self._seconds[-1]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter()
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter()
        if self._rate is None:  # a run resumed in mid-epoch misses the epoch's start
            self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def write(self, **tests: list[float]) -> None:
        """Writes ``metrics.csv`` and ``logs.json``, the latter with results of tests; scores in percent."""
        if not self.rows:
            return
        rows = [in_percent(row) for row in self.rows]
        write_csv(self.folder.path / "metrics.csv", rows)
        columns = dict.fromkeys(key for row in rows for key in row)
        logs = {name: [row.get(name) for row in rows] for name in columns}
        more = {name: [in_percent({name: value})[name] for value in values] for name, values in tests.items()}
        write_json(self.folder.path / "logs.json", {**logs, **more})
