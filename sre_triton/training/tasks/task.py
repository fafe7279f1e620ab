"""What all tasks share: a network, its optimiser, and means over an epoch that survive an interruption."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.utilities.distributed import gather_all_tensors

from sre_triton.training.data.augment import Share, derived_seed
from sre_triton.training.data.loading import ResumableLoader, TrainingBatches, has_no_share
from sre_triton.training.data.warp import Symmetry
from sre_triton.training.options import SCORE_OPTIONS, RunOptions, TurningOptions
from sre_triton.training.schema import to_dict, without_places
from sre_triton.training.tasks.optimisation import optimiser_and_schedules
from sre_triton.training.tasks.report import Report

__all__ = ["STEPS_BETWEEN_CHECKS", "Task"]

STEPS_BETWEEN_CHECKS = 10
"""Steps after which processes that train together ask each other whether to stop."""


class Task(LightningModule):
    """A network with a loss, metrics and data.

    A task says in :attr:`monitor` which validation metric chooses the best checkpoint (larger is better), in
    :attr:`main_score` which score tables lead with, and in :attr:`averaged` what scores are means over. It implements
    ``training_step``, ``validation_step``, the loaders and what raises NotImplementedError here.

    Args:
        network: from images to logits.
        options: of the run, an instance of :attr:`options_type`.
        data: as :meth:`read_data` returns them.
    """

    options_type: ClassVar[type[RunOptions]]
    monitor = ""
    main_score = "accuracy"
    averaged = "images"

    def __init__(self, network: nn.Module, options: RunOptions, data: Any) -> None:
        super().__init__()
        self.network = network
        self.options = options
        self.notes: list[str] = list(getattr(data, "notes", []))  # what the user should know of the data
        self.description = {"task": options.task, "options": to_dict(options), **self.describe(options, data)}
        self._not_finite: Tensor | None = None  # step and loss of the first in this epoch, on the network's device
        self.epoch_means = nn.ModuleDict({name: MeanMetric("disable") for name in ("loss", "accuracy", "grad_norm")})

    @classmethod
    def from_options(cls, options: RunOptions) -> Task:
        """Reads the data, seeds the generator and builds the network of a training."""
        data = cls.read_data(options)
        torch.manual_seed(options.seed)
        return cls(cls.build_network(options, cls.describe(options, data)), options, data)

    @classmethod
    def read_data(cls, options: Any) -> Any:
        """The data that the options name.

        Raises:
            ValueError: they are not as they should be, or disagree with an option.
            OSError: they are missing.
        """
        raise NotImplementedError

    @classmethod
    def describe(cls, options: Any, data: Any) -> dict[str, Any]:
        """What a checkpoint must hold to rebuild the network without the data, as plain values.

        At least ``data`` (their name), ``classes``, ``channels`` and ``ndim`` (2 for images, 3 for volumes).
        """
        raise NotImplementedError

    @classmethod
    def build_network(cls, options: Any, about: Mapping[str, Any]) -> nn.Module:
        """The network that the options name, from images to logits, for data as :meth:`describe` describes them."""
        raise NotImplementedError

    @classmethod
    def input_shape(cls, options: Any, about: Mapping[str, Any]) -> tuple[int, ...]:
        """Shape of one training input as the network sees it, (C, *space)."""
        raise NotImplementedError

    @classmethod
    def prepare_picture(cls, options: Any, about: Mapping[str, Any], pixels: Tensor, side: int = 0) -> Tensor:
        """A picture as the rotation test turns it: its size, channels and range of values.

        Args:
            pixels: (1, 3, H, W) in 0 to 1. A classifier takes its middle square, a segmentation all of it.
            side: of the result, or its longer side; 0 for that of the training.
        """
        raise NotImplementedError

    @classmethod
    def finish_picture(cls, options: Any, turned: Tensor) -> Tensor:
        """What the network sees of a prepared picture, turned or not, (N, C, H, W)."""
        raise NotImplementedError

    @classmethod
    def as_colours(cls, prepared: Tensor) -> Tensor:
        """A prepared picture in 0 to 1."""
        raise NotImplementedError

    @classmethod
    def preprocess(cls, options: Any, images: Tensor) -> Tensor:
        """What the network sees of images (N, C, *space) in 0 to 1; arithmetic on tensors alone, to be exported."""
        raise NotImplementedError

    @classmethod
    def picture_logits(cls, network: nn.Module, options: Any, about: Mapping[str, Any], pixels: Tensor) -> Tensor:
        """Logits of a picture (1, 3, H, W) in 0 to 1: (1, classes), or (1, classes, H, W) of a segmentation."""
        raise NotImplementedError

    @classmethod
    def as_restored(cls, options: Any) -> Any:
        """What of the options in a checkpoint counts: it may be somebody else's, and names no places."""
        return without_places(options, (*SCORE_OPTIONS, "test_batch_size"))

    def _mean(self, name: str) -> Any:
        """The running mean of this name (typed Any, as submodules have no types)."""
        return self.epoch_means[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    @property
    def share(self) -> Share:
        """This process among those that train together."""
        return Share(self.global_rank, self.trainer.world_size)

    def step_seed(self, batch_idx: int) -> int:
        """Seed of what is random in a step, the same in every process."""
        return derived_seed(self.options.seed, 1 + self.current_epoch, batch_idx)

    def configure_optimizers(self) -> Any:
        steps = math.ceil(len(self.training_batches(self.share)) / self.options.accumulate)
        optimiser, schedules = optimiser_and_schedules(self.network, self.options, steps)
        # An interval in steps, as Lightning then advances a schedule before it writes the epoch's checkpoint.
        return [optimiser], [
            {"scheduler": schedule, "interval": "step", "frequency": frequency} for schedule, frequency in schedules
        ]

    def training_batches(self, share: Share) -> TrainingBatches:
        """The batches of a process, as indices of training items."""
        raise NotImplementedError

    def size(self, split: str) -> int:
        """Images of a split, "all" for every one."""
        raise NotImplementedError

    def require(self, split: str) -> None:
        """Makes sure that a split has images.

        Raises:
            ValueError: it has none.
        """
        if self.size(split) == 0:
            raise ValueError(
                f"{self.description['data']} has no {split} images to turn: divide the data otherwise "
                "(--test-fraction), or evaluate with --split val"
            )

    def turned_scores(self, split: str, symmetry: Symmetry, turning: TurningOptions) -> dict[str, float]:
        """Scores of the network on a split whose images are turned, between 0 and 1; computed on the network's device.

        Args:
            split: "train", "val", "test" or "all".
            symmetry: what is done to each image (and its mask).
            turning: how.
        """
        return self.each_scored(split, symmetry, turning)[0]

    def each_scored(
        self, split: str, symmetry: Symmetry, turning: TurningOptions
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """What :meth:`turned_scores` gives, and those scores that an image has by itself, for each image."""
        raise NotImplementedError

    def report(self, split: str, turning: TurningOptions) -> Report:
        """Scores on a split as it is, those of each class, and what was taken for what; on the network's device."""
        raise NotImplementedError

    def batch_caption(self, shown: int, size: int) -> str:
        """What is said under the picture of the first batch."""
        part = "" if shown == size else f"{shown} of "
        of = f"{self.description['data']}, seed {self.options.seed}"
        return f"{of}: {part}the {size} images of the first training batch, as the network sees them"

    def draw_batch(self, path: Path, share: Share) -> None:
        """Writes a picture of the first training batch of a process, at most 32 images, as the network sees them."""
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        self._not_finite = None
        for name in self.epoch_means:
            self._mean(name).reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout draws from the global generator: seeded at every step, a resumed run draws the same numbers.
        torch.manual_seed(derived_seed(self.step_seed(batch_idx), self.global_rank))

    def account(self, loss: Tensor, accuracy: Tensor) -> None:
        """Adds a training step to the epoch's means; all steps of an epoch have as many images.

        Raises:
            FloatingPointError: the loss is not finite, or was not in one of the last steps.
        """
        step = self.trainer.fit_loop.batch_idx + 1
        here = torch.stack([loss.detach().new_tensor(step), loss.detach()]).float()
        fine = here.new_tensor([math.inf, math.nan])
        known = self._not_finite if self._not_finite is not None else fine
        self._not_finite = torch.where(known[0].isinf() & ~here[1].isfinite(), here, known)
        # A GPU would be waited for in every step, and so would other processes.
        if (self.device.type == "cpu" and self.trainer.world_size == 1) or step % STEPS_BETWEEN_CHECKS == 0:
            self.require_finite()
        self._mean("loss").update(loss.detach())
        self._mean("accuracy").update(accuracy.detach())
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        if self.trainer.global_step % self.options.log_interval == 0:
            for logger in self.loggers:
                logger.log_metrics({"train/step_loss": float(loss.detach())}, self.trainer.global_step)

    def require_finite(self) -> None:
        """Makes sure, in all processes at once, that the losses of this epoch were finite.

        Raises:
            FloatingPointError: one was not; names the step.
        """
        step, loss = self._not_finite if self._not_finite is not None else torch.tensor([math.inf, math.nan])
        if self.trainer.world_size > 1:
            first = self.trainer.strategy.reduce(step.to(self.device), reduce_op="min")
            step = torch.as_tensor(first)
        if math.isfinite(float(step)):
            raise FloatingPointError(
                f"the loss is {float(loss)} in step {int(step)} of epoch {self.current_epoch + 1}: lower --lr; "
                "last.ckpt, if there is one, holds what was before"
            )

    def of_all_processes(self, rows: Tensor) -> Tensor:
        """The rows (N, ...) that validation gave in each process, which may differ in number, in all of them."""
        if self.trainer.world_size == 1:
            return rows
        mine = rows[:0] if has_no_share(self.size("val"), self.share) else rows
        return torch.cat(gather_all_tensors(mine))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.options.log_grad_norm:
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            # PyTorch's, as Lightning's waits for the device once for each parameter.
            self._mean("grad_norm").update(nn.utils.get_total_norm(gradients))

    def training_row(self) -> dict[str, float]:
        """The epoch's means over all processes.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        self.require_finite()
        row = {f"train_{name}": float(self._mean(name).compute()) for name in ("loss", "accuracy")}
        if self.options.log_grad_norm:
            row["grad_norm"] = float(self._mean("grad_norm").compute())
        return row

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sre_triton"] = self.description
        checkpoint["epoch_means"] = {}
        for name in self.epoch_means:
            with self._mean(name).sync_context():  # of all processes: they save together, and the first one writes
                state = {key: value.clone() for key, value in self._mean(name).metric_state.items()}
            checkpoint["epoch_means"][name] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored_means = checkpoint.get("epoch_means", {})

    def on_train_start(self) -> None:
        if self.global_rank > 0:
            return  # the first process goes on with the means of all
        for name, state in getattr(self, "_restored_means", {}).items():
            mean = self._mean(name)
            for key, value in state.items():
                setattr(mean, key, value.to(self.device))
            mean._update_count = max(1, mean._update_count)  # else it warns that it has nothing to compute

    def resumable(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Tells the training loader its epoch, and how to count the batches that were trained on."""
        assert isinstance(loader, ResumableLoader)
        assert isinstance(loader.sampler, TrainingBatches)
        # Lightning calls set_epoch only after it has begun to read.
        loader.sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        loader.trained = lambda: self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return loader
