"""The training loop, the same for every task: from a task and a folder to checkpoints and a table of epochs."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from sre_triton.training.data.augment import Share
from sre_triton.training.figures import draw_curves
from sre_triton.training.files import read_json, require_writable
from sre_triton.training.options import RunOptions
from sre_triton.training.runs.callbacks import AtomicCheckpoints, EarlyStop, Interruption, Recorder
from sre_triton.training.runs.folder import (
    ForeignCheckpointError,
    RunFolder,
    checkpoint_in,
    network_state,
    read_checkpoint,
)
from sre_triton.training.runs.loggers import loggers, show_pictures
from sre_triton.training.runs.progress import Bars, Speech
from sre_triton.training.schema import check_ranges
from sre_triton.training.tasks.optimisation import optimiser_and_schedules
from sre_triton.training.tasks.task import Task
from sre_triton.training.tasks.turning import turning_tests

__all__ = ["fit", "is_finished", "prepare_machine"]


def prepare_machine(*, threads: int = 0, deterministic: bool = False, cudnn: bool = False) -> None:
    """Sets PyTorch's switches for the whole process, and silences advice that is meant for authors of loops."""
    if threads > 0:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = cudnn and not deterministic
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fit(task: Task, folder: RunFolder, speech: Speech | None = None) -> Recorder:
    """Trains a task in its folder, from where the folder's last checkpoint is, to the end.

    Nothing is written before options and data are known to be valid. A start that fails before the first checkpoint
    takes away what it has written, so that no run is left to go on with.

    Args:
        speech: where a line per epoch goes, and on a terminal bars (default: standard output).

    Returns:
        The table of epochs.

    Raises:
        Interrupted: the user stopped it; the folder is whole.
        ValueError: an option is wrong, ``last.ckpt`` is damaged, or another process trains in the folder.
        FloatingPointError: the loss is no longer finite.
        OSError: the folder cannot be written to.
    """
    options, speech = task.options, speech or Speech(quiet=task.options.quiet)
    _check(options)
    optimiser_and_schedules(task.network, options, 1)  # its errors come before anything is written
    require_writable(folder.path, "--base-log-dir" if options.resume is None else "--resume")
    with folder.locked() if _is_first() else nullcontext():
        return _fit(task, folder, speech)


def _fit(task: Task, folder: RunFolder, speech: Speech) -> Recorder:
    options = task.options
    resumed = folder.last if folder.last.is_file() else None
    if resumed is not None:
        content = read_checkpoint(resumed)  # its error says what is wrong; Lightning's does not
        folder.check(options)
        if _has_ended(content, options):  # nothing is left to do, and what is written stays
            ended = Recorder(folder, task.monitor, options.cur_ep)
            ended.load_state_dict(content["callbacks"][ended.state_key])
            if _is_first():
                speech.say(f"nothing is left to train: {len(ended.rows)} epochs are done")
            return ended
        if _is_first():
            speech.say(f"going on after epoch {options.cur_ep + _epochs_done(content)} of {options.epochs}")
    elif options.load_model is not None:
        load_weights(task, options.load_model)
    recorder = Recorder(folder, task.monitor, options.cur_ep, speech)
    interruption = Interruption(folder, options.command)
    trainer = _trainer(task, folder, recorder, interruption, speech)
    if _is_first():
        folder.begin(options, task.description, task.network)
        folder.announce()
        for logger in trainer.loggers:
            logger.log_hyperparams(read_json(folder.path / "config.json"))
    if options.compile:
        task.network.compile()
    if options.log_img and _is_first():
        share = Share(0, options.world_size if options.ddp else 1)
        task.draw_batch(folder.path / f"batch.{options.figure_format}", share)
    with interruption.watched():
        trainer.fit(task, ckpt_path=str(resumed) if resumed is not None else None, weights_only=True)
    if trainer.is_global_zero and recorder.rows:
        recorder.write()
        _draw(task, folder, recorder)
        recorder.pictures = lambda paths: show_pictures(trainer.loggers, paths, trainer.global_step)
    return recorder


def _is_first() -> bool:
    """Whether this is the process that writes, of those that Lightning starts."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def _trainer(task: Task, folder: RunFolder, recorder: Recorder, interruption: Interruption, speech: Speech) -> Trainer:
    options = task.options
    recorder.tests = partial(_periodic_tests, task)
    callbacks: list[Any] = [recorder, interruption, *_checkpoints(task, folder)]
    if options.ema:
        callbacks.insert(0, EMAWeightAveraging(decay=options.ema))
    if options.early_stop:
        callbacks.append(EarlyStop(task.monitor, options.early_stop, speech))
    if speech.has_bars and _is_first():
        callbacks.append(Bars(speech, options.cur_ep))
    return Trainer(
        default_root_dir=str(folder.path),
        max_epochs=1 if options.dry_run else options.epochs - options.cur_ep,
        limit_train_batches=1 if options.dry_run else None,
        limit_val_batches=1 if options.dry_run else None,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=loggers(options, folder, speech),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=None,
        accumulate_grad_batches=options.accumulate,
        **_machine(options),
    )


def _draw(task: Task, folder: RunFolder, recorder: Recorder) -> None:
    about = f"{task.description['data']}, {task.options.model_type}, seed {task.options.seed}"
    sizes = f"trained on {task.size('train'):,} images, validated on {task.size('val'):,}"
    curves = folder.path / f"curves.{task.options.figure_format}"
    draw_curves(curves, recorder.rows, task.monitor, f"{about}; {sizes}")


def is_finished(folder: RunFolder, options: RunOptions) -> bool:
    """Whether the last checkpoint of a run has had all of its epochs, or as many as ``--early-stop`` let it.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    if not folder.last.is_file():
        return False
    return _has_ended(read_checkpoint(folder.last), options)


def _has_ended(content: dict[str, Any], options: RunOptions) -> bool:
    patience = [state for name, state in content["callbacks"].items() if name.startswith(EarlyStop.__name__)]
    if any(state["wait_count"] >= state["patience"] for state in patience):
        return True
    return _epochs_done(content) >= (1 if options.dry_run else options.epochs - options.cur_ep)


def _epochs_done(content: dict[str, Any]) -> int:
    # Lightning counts an epoch as processed once its validation is over, before its checkpoint is written.
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def load_weights(task: Task, path: Path) -> None:
    """Puts the weights of a checkpoint, ours or the reference script's, into a task's network.

    Raises:
        ValueError: it is damaged, or of another network.
        OSError: it is missing.
    """
    from sre_triton.models import load_reference_checkpoint

    path = checkpoint_in(path)
    try:
        state = network_state(read_checkpoint(path))
    except ForeignCheckpointError:
        state = load_reference_checkpoint(path)["state_dict"]
    try:
        task.network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"--load-model {path} is of another network: {str(error).splitlines()[1].strip()}") from error


def _check(options: RunOptions) -> None:
    check_ranges(options)
    if options.cur_ep >= options.epochs:
        raise ValueError(f"--cur-ep must be below --epochs {options.epochs}, got {options.cur_ep}")
    if options.amp and options.bf16:
        raise ValueError("--amp and --bf16 ask for two precisions: choose one")
    if options.amp and (options.no_cuda or not torch.cuda.is_available()):
        raise ValueError("--amp needs a CUDA device: on a CPU use --bf16")
    if options.world_size > 1 and not options.ddp:
        raise ValueError(f"--world-size {options.world_size} needs --ddp")


def _periodic_tests(task: Task, epoch: int) -> dict[str, float]:
    """The tests of ``--eval-interval``, on the validation set; nothing of the test set is seen in training."""
    options = task.options
    if epoch % options.eval_interval or not (options.eval_rot or options.eval_flip):
        return {}
    return turning_tests(task, "val", options, rotations=options.eval_rot, flips=options.eval_flip)


def _machine(options: RunOptions) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available() and not options.no_cuda
    settings: dict[str, Any] = {
        "accelerator": "cuda" if on_gpu else "cpu",
        "devices": options.world_size if options.ddp else 1,
        "precision": "16-mixed" if options.amp else "bf16-mixed" if options.bf16 else "32-true",
        "deterministic": options.deterministic or None,
        "sync_batchnorm": options.ddp and on_gpu,
    }
    if options.ddp:
        settings["strategy"] = "ddp"
        if options.dist_url:
            url = urlsplit(options.dist_url)
            if url.scheme != "tcp" or not url.hostname or not url.port:
                raise ValueError(f"--dist-url must be tcp://HOST:PORT, got {options.dist_url!r}")
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = url.hostname, str(url.port)
    return settings


def _checkpoints(task: Task, folder: RunFolder) -> list[ModelCheckpoint]:
    """Keepers of the best epoch, of every ``--save-interval``-th and of the last.

    The last checkpoint is written last, because it also holds the state of the other keepers.
    """
    every_epoch: dict[str, Any] = {
        "dirpath": folder.path,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    kept = [_Checkpoints(filename="best", monitor=task.monitor, mode="max", **every_epoch)]
    if task.options.save_rec:
        interval = task.options.save_interval
        kept.append(_Numbered(filename="{epoch:04d}", save_top_k=-1, every_n_epochs=interval, **every_epoch))
    return [*kept, _LastCheckpoint(filename="last", **every_epoch)]


class _Checkpoints(ModelCheckpoint):
    """Knows its files again where the folder was moved to; Lightning then forgets the best score."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in _PATHS}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


# Lightning stores the state of each keeper under the name of its class.
class _Numbered(_Checkpoints):
    pass


class _LastCheckpoint(_Checkpoints):
    pass
