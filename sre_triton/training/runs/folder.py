"""The folder of a run: what is in it, and how it is found again. It is whole at every moment of a training.

config.json      every option, the command line, when it began, and what the data and the network were
versions.json    of the packages and the machine, and the seconds of each epoch
resumed.json     command line, time and versions of each time that the run was gone on with
metrics.csv      one row per epoch
logs.json        the same by column, with the results of rotation and flip tests
curves.png       the same as a picture
last.ckpt        after every epoch, and where Ctrl-C came; training goes on from here
best.ckpt        best epoch on the validation set
"""

from __future__ import annotations

import datetime
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sre_triton.diagnosis.machine import describe_machine
from sre_triton.training.files import read_json, sweep, write_json
from sre_triton.training.options import RunOptions
from sre_triton.training.runs.pretrained import pretrained_path, read_pretrained
from sre_triton.training.schema import from_dict, result_options, to_dict

__all__ = [
    "ForeignCheckpointError",
    "RunFolder",
    "checkpoint_in",
    "first_line",
    "folder_of",
    "network_state",
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
            path = folder_of(options.resume)
        else:
            begun = [path for path in home.glob(f"{stem}*") if (path / _CONFIG).is_file()]
            runs = [path for path in begun if not read_json(path / _CONFIG)["options"].get("eval_only")]
            if not runs:
                raise FileNotFoundError(f"--resume: there is no run {home / stem} to go on from")
            path = max(runs, key=lambda run: (run / _CONFIG).stat().st_mtime)
        if options.resume is not None and not (path / _CONFIG).is_file():
            raise FileNotFoundError(f"--resume {path}: there is no config.json, so this is not a run folder")
        return cls(path)

    def announce(self) -> None:
        """Tells the processes that are started from here that this is their folder."""
        os.environ[_FOLDER_VARIABLE] = str(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this folder; a process that dies lets go of it. What fails in a new
        run before its first checkpoint takes the run away, so that nothing is left to go on with.

        Raises:
            ValueError: another trains in it.
        """
        from filelock import FileLock, Timeout

        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"{self.path} is being trained by another process: wait for it, or stop it") from error
        is_new = not (self.path / _CONFIG).exists()
        try:
            yield
        except Exception:
            if is_new and not self.last.is_file():
                self._take_away(made)
            raise
        finally:
            lock.release()

    def _take_away(self, made: list[Path]) -> None:
        for pattern in (_CONFIG, _VERSIONS, ".lock", "batch.*"):
            for path in self.path.glob(pattern):
                path.unlink()
        for path in made:  # the innermost first; what holds something else stays
            try:
                path.rmdir()
            except OSError:
                break

    def check(self, options: RunOptions) -> None:
        """Makes sure that a run that was begun had the same values of all options that change its result, but it may
        be given more epochs where the schedule does not depend on their number.

        Raises:
            ValueError: options differ; names each and both values.
        """
        then = result_options(from_dict(type(options), read_json(self.path / _CONFIG)["options"]))
        now = result_options(options)
        differ = [name for name, value in now.items() if then[name] != value]
        if now["epochs"] > then["epochs"] and not (options.cos or options.one_cycle):
            differ.remove("epochs")
        if differ:
            told = " and ".join(f"--{name.replace('_', '-')} {then[name]}, not {now[name]}" for name in differ)
            raise ValueError(f"{self.path} was begun with {told}: resume with the same")

    def begin(self, options: RunOptions, description: dict[str, Any], network: torch.nn.Module) -> None:
        """Writes what the run is. Of one that is gone on with all that was written stays, and ``resumed.json`` says
        when and with what it was.

        Raises:
            ValueError: it was begun with other options; see :meth:`check`.
        """
        config = self.path / _CONFIG
        now = {"command": command_line(), "date": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"}
        if config.is_file():
            self.check(options)
            sweep(self.path)
            resumed = self.path / "resumed.json"
            before = read_json(resumed) if resumed.is_file() else []
            write_json(resumed, [*before, {**now, "epochs": options.epochs, **versions()}])
            begun = read_json(config)
            if begun["options"]["epochs"] < options.epochs:
                write_json(config, {**begun, "options": {**begun["options"], "epochs": options.epochs}})
            return
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        write_json(config, {**now, **description, "parameters": parameters, "options": to_dict(options)})
        write_json(self.path / _VERSIONS, versions())

    def note_seconds(self, seconds: Sequence[float]) -> None:
        """Keeps how long each epoch took, beside what it was computed with."""
        path = self.path / _VERSIONS
        write_json(path, {**read_json(path), "seconds_per_epoch": [round(value, 3) for value in seconds]})


_CONFIG, _VERSIONS = "config.json", "versions.json"


def command_line() -> str:
    """What was run, as a shell takes it."""
    if not sys.argv:
        return ""
    program = Path(sys.argv[0])
    called = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*called, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """What a result was computed with."""
    packages = {}
    for name in ("lightning", "torchmetrics", "monai", "scikit-image"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {**describe_machine(), "commit": _commit(), **packages}


def _commit() -> str:
    """The commit of the checkout that this package is imported from; changes that are not committed are told."""
    home = Path(__file__).parents[3]
    if not (home / ".git").exists():
        return "not a checkout"
    try:
        found = subprocess.run(
            ["git", "-C", str(home), "describe", "--always", "--abbrev=40", "--dirty=, with changes"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


class ForeignCheckpointError(ValueError):
    """A checkpoint that is whole, but not of this package."""


def folder_of(path: Path) -> Path:
    """The run folder that a path means: itself, or that of a checkpoint; the present one for a pretrained network."""
    return path if path.is_dir() else path.parent


def first_line(error: Exception) -> str:
    """What an error says first, its kind if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def checkpoint_in(path: Path) -> Path:
    """The checkpoint that a path means: itself, the best (else the last) of a run folder, or a pretrained network's.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it names a pretrained network and a run folder.
    """
    pretrained = pretrained_path(path)
    if pretrained is not None:
        return pretrained
    if path.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"{path} holds neither best.ckpt nor last.ckpt")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a checkpoint, a run folder or a pretrained network")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this package; nothing in it is executed.

    Raises:
        ValueError: it is damaged.
        ForeignCheckpointError: it is not of this package.
    """
    if path.suffix == ".safetensors":
        return read_pretrained(path)
    with path.open("rb"):
        pass  # what is missing or forbidden says so; what PyTorch finds wrong is the content
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises many kinds on bytes that are no checkpoint
        reason = first_line(error) if zipfile.is_zipfile(path) else "it is no file that torch.save has written"
        raise ValueError(f"{path} is not a whole checkpoint: {reason}") from error
    if not isinstance(content, dict) or "sre_triton" not in content:
        raise ForeignCheckpointError(
            f"{path} was not written by `sre-triton train` or `segment`: it has no key 'sre_triton' "
            "(sre_triton.models.load_reference_checkpoint reads files of the reference's script)"
        )
    return content


def network_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state dict of the network in what :func:`read_checkpoint` read."""
    prefix = "network."
    return {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
