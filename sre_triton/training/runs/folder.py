"""The folder of a run: what is in it, and how it is found again. It is whole at every moment of a training.

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
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
        """Writes the configuration. A resumed run must have the same values of all options that change its result, but
        it may have more epochs where the schedule does not depend on their number.

        Raises:
            ValueError: options differ; names each and both values.
        """
        config = self.path / "config.json"
        if config.is_file():
            then = result_options(from_dict(type(options), read_json(config)["options"]))
            now = result_options(options)
            differ = [name for name, value in now.items() if then[name] != value]
            if now["epochs"] > then["epochs"] and not (options.cos or options.one_cycle):
                differ.remove("epochs")
            if differ:
                told = " and ".join(f"--{name.replace('_', '-')} {then[name]}, not {now[name]}" for name in differ)
                raise ValueError(f"{self.path} was begun with {told}: resume with the same")
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
    import pickle

    if path.suffix == ".safetensors":
        return read_pretrained(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {first_line(error)}") from error
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
