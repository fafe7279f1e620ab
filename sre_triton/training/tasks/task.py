"""What every task shares: a network, its optimiser, and an account of each epoch that survives an interruption."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from sre_triton.training.data.augment import Share, derived_seed
from sre_triton.training.data.loading import ResumableLoader, TrainingBatches
from sre_triton.training.data.warp import Symmetry
from sre_triton.training.options import RunOptions, TurningOptions
from sre_triton.training.tasks.optimisation import optimiser_and_schedule

__all__ = ["Task"]


class Task(LightningModule):
    """A network with a loss, metrics and data.

    A task says in :attr:`monitor` which validation metric chooses the best checkpoint (larger is better), and in
    :attr:`main_score` which score tables lead with. It implements ``training_step``, ``validation_step``, the loaders
    and what raises NotImplementedError here.

    Args:
        network: from images to logits.
        options: of the run.
        description: what a checkpoint must hold to rebuild the task without its data; plain values.
    """

    monitor = ""
    main_score = "accuracy"

    def __init__(self, network: nn.Module, options: RunOptions, description: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.options = options
        self.description = description
        self.epoch_means = nn.ModuleDict({name: MeanMetric() for name in ("loss", "accuracy", "grad_norm")})

    def _mean(self, name: str) -> Any:
        """A mean over the epoch; Any, as a module's attributes have no types."""
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
        optimiser, schedule = optimiser_and_schedule(self.network, self.options)
        # Counted in steps, Lightning moves the schedule before it writes an epoch's checkpoint, not after.
        steps = len(self.training_batches())
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": steps},
        }

    def training_batches(self) -> TrainingBatches:
        """The order of the training items of this process."""
        raise NotImplementedError

    def turned_scores(self, split: str, symmetry: Symmetry, turning: TurningOptions) -> dict[str, float]:
        """Scores of the network as it is on a turned split, as shares of one; batched on the network's device.

        Args:
            split: "train", "val" or "test".
            symmetry: what is done to each image (and its mask).
            turning: how.
        """
        raise NotImplementedError

    def draw_batch(self, path: Path) -> None:
        """Writes a picture of the first training batch as the network sees it."""
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        for name in self.epoch_means:
            self._mean(name).reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout draws from the global generator; seeded by the step, it needs no memory of the steps before.
        torch.manual_seed(derived_seed(self.step_seed(batch_idx), self.global_rank))

    def account(self, loss: Tensor, accuracy: Tensor, count: int) -> None:
        """Adds a training step to the epoch's means."""
        self._mean("loss").update(loss.detach(), count)
        self._mean("accuracy").update(accuracy.detach(), count)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        if self.trainer.global_step % self.options.log_interval == 0:
            for logger in self.loggers:
                logger.log_metrics({"train/step_loss": float(loss.detach())}, self.trainer.global_step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.options.log_grad_norm:
            norms = [p.grad.norm() for p in self.network.parameters() if p.grad is not None]
            self._mean("grad_norm").update(torch.stack(norms).norm())

    def training_row(self) -> dict[str, float]:
        """The epoch's means over all processes.

        Raises:
            ValueError: the loss is not finite.
        """
        row = {f"train_{name}": float(self._mean(name).compute()) for name in ("loss", "accuracy")}
        if not math.isfinite(row["train_loss"]):
            raise ValueError(f"the loss is {row['train_loss']} in epoch {self.current_epoch + 1}: lower --lr")
        if self.options.log_grad_norm:
            row["grad_norm"] = float(self._mean("grad_norm").compute())
        return row

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sre_triton"] = self.description
        checkpoint["epoch_means"] = {name: dict(self._mean(name).metric_state) for name in self.epoch_means}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored_means = checkpoint.get("epoch_means", {})

    def on_train_start(self) -> None:
        for name, state in getattr(self, "_restored_means", {}).items():
            mean = self._mean(name)
            for key, value in state.items():
                setattr(mean, key, value.to(self.device))
            mean._update_count = max(1, mean._update_count)  # else it warns that it has nothing to compute

    def resumable(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Lets the training loader count what Lightning's loop has trained on."""
        assert isinstance(loader, ResumableLoader)
        assert isinstance(loader.sampler, TrainingBatches)
        # Lightning tells the epoch after it has begun to read.
        loader.sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        loader.trained = lambda: self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return loader
