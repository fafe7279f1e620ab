"""What a training says while it runs: a line per finished epoch, which stays, and on a terminal bars below them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

__all__ = ["Bars", "Speech", "duration", "epoch_line"]

_REFRESH = 0.25  # seconds between two drawings of the bars


class Speech:
    """Where lines go: above the bars of a training if there are any.

    Args:
        quiet: say nothing.
        label: begins each line, where several trainings speak at a time.
        bars: draw bars if this is a terminal.
    """

    def __init__(self, *, quiet: bool = False, label: str = "", bars: bool = True) -> None:
        self.console = Console(file=sys.stdout, quiet=quiet, highlight=False, markup=False, emoji=False)
        self.label = label
        self.has_bars = bars and not quiet and self.console.is_terminal

    def say(self, line: str) -> None:
        """Writes a line at once; it is never cut, and wrapped by the terminal alone."""
        self.console.print(f"{self.label}: {line}" if self.label else line, soft_wrap=True)
        if not self.console.quiet:
            self.console.file.flush()


def epoch_line(
    row: Mapping[str, Any], before: Sequence[Mapping[str, Any]], monitor: str, epochs: int, pace: float
) -> str:
    """A finished epoch as a line: losses, the score that chooses the best epoch in percent, rate and seconds.

    Args:
        row: of the table of epochs.
        before: the rows of the epochs before it.
        monitor: the column that chooses.
        epochs: the number of the last one.
        pace: seconds that it took.
    """
    scores = [float(other[monitor]) for other in before if other.get(monitor) is not None]
    score = float(row[monitor])
    best = max(scores, default=score)
    said = f"best {100 * best:.2f}" if best >= score and scores else "best"
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['train_loss']:.4f}, val {row['val_loss']:.4f}  "
        f"{monitor.removeprefix('val_').replace('_', ' ')} {100 * score:.2f} ({said})  lr {row['lr']:.2g}  "
        f"{duration(pace)}"
    )


def duration(seconds: float) -> str:
    """Seconds as people read them: 4.2 s, 3:07 or 2:05:09."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Bars(Callback):
    """A bar of the epoch and one of the whole training, each with the time that is left.

    Batches of training and of validation count alike, and time goes on as it did since this process began.
    """

    def __init__(self, speech: Speech, first_epoch: int = 0) -> None:
        self.first_epoch = first_epoch
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=speech.console,
            transient=True,
            auto_refresh=False,
        )
        self._epoch: TaskID | None = None
        self._whole: TaskID | None = None
        self._drawn = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._of_epoch = int(trainer.num_training_batches) + int(sum(trainer.num_val_batches))
        epochs = (trainer.max_epochs or 0) + self.first_epoch
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if done >= int(trainer.num_training_batches):  # resumed after an epoch, whose count still stands
            done = 0
        self._whole = self.progress.add_task(
            f"all {epochs} epochs",
            total=self._of_epoch * (trainer.max_epochs or 0),
            completed=self._of_epoch * trainer.current_epoch + done,
            left="",
        )
        self._epoch = self.progress.add_task("", total=self._of_epoch, completed=done, left="")
        self._begun, self._steps, self._resumed_at = time.monotonic(), 0, done
        self.progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._epoch is not None
        done, self._resumed_at = self._resumed_at, 0
        name = f"epoch {self.first_epoch + trainer.current_epoch + 1}"
        self.progress.update(self._epoch, description=name, completed=done)
        self._draw(force=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._advance()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._advance()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.progress.stop()

    def _advance(self) -> None:
        self._steps += 1
        for task in (self._epoch, self._whole):
            if task is not None:
                self.progress.advance(task)
        self._draw()

    def _draw(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._drawn < _REFRESH:
            return
        self._drawn = now
        if self._steps:
            pace = (now - self._begun) / self._steps
            for task in self.progress.tasks:
                left = pace * (task.total - task.completed) if task.total is not None else 0
                self.progress.update(task.id, left=f"{duration(round(left))} left".replace(".0 s", " s"))
        self.progress.refresh()
