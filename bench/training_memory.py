"""Peak memory of trainings on 20,000 RGB images of 224 px: as one archive of 3 GB, and as files in folders.

    python -m bench.training_memory [--images 20000] [--folder /tmp]

Each runs in a process of its own: a real training of one step and one validation batch, and then every batch of the
training set once, as an epoch reads them. Prints the highest resident set, and its parts that files back (shared by all
processes that train together, and given up when memory is short) and that they do not. The data are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 224
_PIECE = 200  # images written at a time
MB = 2**20


def write_archive(path: Path, images: int, compressed: bool) -> None:
    """An archive of MedMNIST's format, written piece by piece; a tenth each is to validate and to test on."""
    rng = np.random.default_rng(0)
    counts = {"train": images - 2 * (images // 10), "val": images // 10, "test": images // 10}
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind, compresslevel=1) as archive:
        for split, count in counts.items():
            labels = (np.arange(count) % 2).astype(np.uint8)[:, None]
            with archive.open(f"{split}_labels.npy", "w") as file:
                np.lib.format.write_array(file, labels)
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, count, _PIECE):
                    shape = (min(_PIECE, count - start), SIDE, SIDE, 3)
                    file.write(rng.integers(0, 256, shape, dtype=np.uint8).tobytes())


def write_folder(path: Path, images: int) -> None:
    """Two folders of JPEGs; every picture but the first 200 is a further name of one of those, to be read anew."""
    from PIL import Image

    rng = np.random.default_rng(0)
    made: list[Path] = []
    for number in range(images):
        place = path / ("light" if number % 2 else "dark") / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if len(made) < _PIECE:
            small = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(small).resize((SIDE, SIDE)).save(place, quality=90)
            made.append(place)
        else:
            place.hardlink_to(made[number % len(made)])


def train_once(options: dict[str, Any], logs: Path) -> dict[str, float]:
    """Trains in this process, reads an epoch, and returns MB of memory at the highest, and seconds."""
    from sre_triton.training.options import TrainOptions
    from sre_triton.training.runs.fitting import fit, prepare_machine
    from sre_triton.training.runs.folder import RunFolder
    from sre_triton.training.tasks.classification import ClassificationTask, Labelled

    prepare_machine(threads=1)
    start = time.perf_counter()
    places = {name: Path(value) for name, value in options.items() if name in ("data", "data_root")}
    small = {"model_type": "sre_resnet18", "res_inplanes": 4, "batch_size": 8, "sgd": True, "dry_run": True}
    task = ClassificationTask.from_options(TrainOptions(**{**small, **options, **places, "test_batch_size": 16}))
    fit(task, RunFolder(logs))
    pixels = files = 0.0
    images: Any = task.images
    labelled = Labelled(images.splits["train"])
    for index in range(0, len(labelled), 16):
        batch, _ = labelled[list(range(index, min(index + 16, len(labelled))))]
        pixels += batch.nbytes
        files = max(files, _now("RssFile"))
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "data": pixels / MB,
        "highest": highest,
        "file": files,
        "own": _now("RssAnon"),
        "seconds": time.perf_counter() - start,
    }


def _now(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return float(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}: this needs Linux")


def measure(kind: str, images: int, home: Path) -> dict[str, float]:
    """The figures of one kind of data, "archive", "compressed" or "folder", in a new process."""
    with tempfile.TemporaryDirectory(prefix="sre_triton-memory-", dir=home) as name:
        folder = Path(name)
        if kind == "folder":
            write_folder(folder / "pictures", images)
            options = {"data": str(folder / "pictures"), "image_size": SIDE}
        else:
            write_archive(folder / f"own_{SIDE}.npz", images, kind == "compressed")
            options = {"data_root": str(folder), "med_mnist": "own", "medmnist_size": SIDE}
        question = ("-m", "bench.training_memory", "--child", json.dumps(options), "--folder", name)
        environment = {"SRE_TRITON_CACHE_DIR": str(folder / "cache")}
        done = subprocess.run([sys.executable, *question], env={**os.environ, **environment}, stdout=subprocess.PIPE)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        if done.returncode:
            raise RuntimeError(f"the training on {kind} ended with {done.returncode}")
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000, help="images of the set (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where the data are written")
    parser.add_argument("--kinds", nargs="+", default=["archive", "compressed", "folder"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(train_once(json.loads(arguments.child), arguments.folder / "run")))
        return
    print(f"{arguments.images} images of {SIDE} px: MB at the highest")
    for kind in arguments.kinds:
        found = measure(kind, arguments.images, arguments.folder)
        print(
            f"{kind:10}  training images {found['data']:6.0f}  resident {found['highest']:6.0f}  "
            f"of files {found['file']:6.0f}  own at the end {found['own']:6.0f}  ({found['seconds']:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
