"""The command ``predict``: answers of a trained network on picture files, as files."""

from __future__ import annotations

import csv
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress

from sre_triton.training.data.masks import MaskClasses, read_field
from sre_triton.training.data.pairs import pair_by_name
from sre_triton.training.data.pictures import (
    is_nifti,
    is_tiff,
    left_out,
    page_count,
    picture_files,
    picture_name,
    read_picture,
)
from sre_triton.training.figures.maps import overlay
from sre_triton.training.files import (
    in_percent,
    read_json,
    replacing,
    require_file,
    require_writable,
    sweep,
    write_csv,
    write_json,
)
from sre_triton.training.options import PredictOptions
from sre_triton.training.runs.folder import checkpoint_in
from sre_triton.training.runs.predictor import Predictor, load
from sre_triton.training.schema import check_ranges
from sre_triton.training.tasks.segmentation_scores import segmentation_scores
from sre_triton.training.tasks.undefined import UNDEFINED, means_of_known

__all__ = ["predict"]

Picture = npt.NDArray[np.float32]

_TABLE = "predictions.csv"
_BEGUN = "predict.json"
_SECONDS = 5.0  # between two writings of the table


def predict(
    model: Path, inputs: Sequence[Path], options: PredictOptions, console: Console | None = None
) -> list[dict[str, Any]]:
    """Answers for pictures, written to ``--output``; what is there already from the same model is kept.

    Writes ``predictions.csv``: a row per picture with its class and the classes' probabilities, or of a segmentation
    the share of each class, and scores where ``--masks`` are given. A segmentation also writes, per picture,
    ``NAME_mask``, ``NAME_probability`` (per class but the ground) and ``NAME_overlay``; TIFF or NIfTI where the
    picture is, else PNG, probabilities there 0 to 65535. Of a stack (pages, frames, slices) the maps are stacks, too,
    and the table has a row per picture, ``NAME[0]`` and so on.

    Args:
        model: run folder or checkpoint.
        inputs: picture files, and folders of them.

    Returns:
        The rows.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a picture is damaged, two have one name, or the folder is of another prediction.
    """
    console = console or Console(quiet=options.quiet)
    check_ranges(options)
    require_writable(options.output, "--output")
    device = "cuda" if torch.cuda.is_available() and not options.no_cuda else "cpu"
    predictor = load(model, device=device)
    pictures = _pictures(inputs, console)
    truths = _truths(predictor, pictures, options)
    _begin(model, options)
    table = options.output / _TABLE
    answered = _rows_before(table, pictures)
    left = [path for path in pictures if path.name not in answered and f"{path.name}[0]" not in answered]
    if answered:
        console.print(f"{len(pictures) - len(left)} of {len(pictures)} pictures were answered before")
    rows: dict[str, dict[str, Any]] = {}
    written = time.monotonic()
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("predicting", total=len(pictures), completed=len(pictures) - len(left))
            for path, images, answers in _answers(predictor, left, options):
                stack = len(images) > 1
                if stack and path in truths:
                    raise ValueError(f"{path} is a stack of {len(images)}: --masks are for single pictures")
                for page, probabilities in enumerate(answers):
                    name = f"{path.name}[{page}]" if stack else path.name
                    rows[name] = {"image": name, **_row(predictor, probabilities)}
                    if predictor.task == "segmentation" and not stack:
                        rows[name] |= in_percent(_scores(path, probabilities, truths.get(path), predictor.threshold))
                if predictor.task == "segmentation":
                    _write_maps(options.output, path, predictor, answers, images)
                answered |= rows  # once its files are whole
                rows = {}
                progress.advance(bar)
                if time.monotonic() - written > _SECONDS:
                    write_csv(table, list(answered.values()))
                    written = time.monotonic()
    finally:
        if answered:
            write_csv(table, list(answered.values()))
    _print_scores(list(answered.values()), console)
    console.print(f"{len(pictures)} picture{'s' * (len(pictures) > 1)} on {device}; {table}", soft_wrap=True)
    return list(answered.values())


def _answers(
    predictor: Predictor, paths: list[Path], options: PredictOptions
) -> Iterator[tuple[Path, list[Picture], list[Picture]]]:
    """For each file its pictures and their probabilities; files of one size that follow each other are answered
    together, ``--batch`` at a time, and so are the pictures of a stack."""
    waiting: list[tuple[Path, Picture]] = []

    def answered() -> Iterator[tuple[Path, list[Picture], list[Picture]]]:
        if waiting:
            found = predictor.probabilities_of([torch.from_numpy(image) for _, image in waiting], tta=options.tta)
            for (path, image), probabilities in zip(waiting, found, strict=True):
                yield path, [image], [probabilities]
            waiting.clear()

    for path in paths:
        try:
            pages = page_count(path)
            first = read_picture(path, options.max_value, 0 if pages > 1 else None)
        except (OSError, ValueError):
            yield from answered()  # those before it are whole
            raise
        if pages > 1 or len(waiting) == options.batch or (waiting and waiting[0][1].shape != first.shape):
            yield from answered()
        if pages == 1:
            waiting.append((path, first))
            continue
        images = [first, *(read_picture(path, options.max_value, page) for page in range(1, pages))]
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"{path} holds {pages} pictures of several sizes: expected one size")
        found: list[Picture] = []
        for start in range(0, pages, options.batch):
            some = [torch.from_numpy(image) for image in images[start : start + options.batch]]
            found += list(predictor.probabilities_of(some, tta=options.tta))
        yield path, images, found
    yield from answered()


def _pictures(inputs: Sequence[Path], console: Console) -> list[Path]:
    found: dict[str, Path] = {}
    for path in inputs:
        listed, others = picture_files(path) if path.is_dir() else ([path], [])
        for note in left_out(others):
            console.print(note, soft_wrap=True)
        if not listed:
            raise ValueError(f"{path} holds no picture")
        for picture in listed:
            require_file(picture)
            twin = found.setdefault(picture_name(picture), picture)
            if twin != picture:
                raise ValueError(f"{twin} and {picture} have one name: predict them into different folders")
    return list(found.values())


def _truths(
    predictor: Predictor, pictures: list[Path], options: PredictOptions
) -> dict[Path, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]]:
    """The classes of each picture's mask, and its field of view."""
    for name in ("masks", "fov"):
        if getattr(options, name) is not None and predictor.task != "segmentation":
            raise ValueError(f"--{name} is for segmentation: the model classifies")
    if options.masks is None:
        if options.fov is not None:
            raise ValueError("--fov is for scores, which need --masks")
        return {}
    classes = MaskClasses(
        tuple(int(value) for value in predictor.classes), (), getattr(predictor.options, "mask_threshold", None)
    )
    masks = pair_by_name(pictures, picture_files(options.masks)[0])
    fields: Sequence[Path | None] = [None] * len(pictures)
    if options.fov is not None:
        fields = pair_by_name(pictures, picture_files(options.fov)[0], "field of view")
    return {
        picture: (classes.read(mask)[0], read_field(field)[0] if field is not None else None)
        for picture, mask, field in zip(pictures, masks, fields, strict=True)
    }


def _begin(model: Path, options: PredictOptions) -> None:
    """Makes the folder, or makes sure that it is of the same model and options."""
    checkpoint = checkpoint_in(model)
    asked = {
        "model": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "tta": options.tta,
        "max_value": options.max_value,
        "masks": str(options.masks) if options.masks is not None else None,
        "fov": str(options.fov) if options.fov is not None else None,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    sweep(options.output)
    begun = options.output / _BEGUN
    if begun.is_file():
        for name, value in read_json(begun).items():
            if asked.get(name) != value:
                raise ValueError(f"{options.output} was begun with another {name}: choose another --output")
    else:
        write_json(begun, asked)


def _rows_before(table: Path, pictures: list[Path]) -> dict[str, dict[str, Any]]:
    if not table.is_file():
        return {}
    names = {path.name for path in pictures}
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["image"]: dict(row) for row in csv.DictReader(file)}
    return {name: row for name, row in rows.items() if name in names or re.sub(r"\[\d+\]$", "", name) in names}


def _row(predictor: Predictor, probabilities: npt.NDArray[np.float32]) -> dict[str, Any]:
    answer = predictor.decide(probabilities)
    if predictor.task == "segmentation":
        return {f"share_{value}": float((answer == value).mean()) for value in predictor.classes}
    shown = ";".join(map(str, answer)) if predictor.several else str(answer)
    named = zip(predictor.classes, probabilities.tolist(), strict=True)
    return {"class": shown, **{f"p_{name}": probability for name, probability in named}}


def _scores(
    path: Path,
    probabilities: npt.NDArray[np.float32],
    truth: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None] | None,
    threshold: float | None,
) -> dict[str, float]:
    if truth is None:
        return {}
    labels, field = truth
    if labels.shape != probabilities.shape[1:]:
        raise ValueError(f"{path} has {probabilities.shape[1:]} pixels, its mask {labels.shape}")
    answers, classes = torch.from_numpy(probabilities), torch.from_numpy(labels)
    whole = segmentation_scores(answers.flatten(1), classes.flatten(), threshold)
    if field is None:
        return whole
    inside = torch.from_numpy(field).bool()
    within = segmentation_scores(answers[:, inside], classes[inside], threshold)
    return within | {f"whole_{k}": v for k, v in whole.items()}


def _print_scores(rows: list[dict[str, Any]], console: Console) -> None:
    names = [name for name in rows[0] if name not in ("image", "class") and not name.startswith(("p_", "share_"))]
    if names:
        means = means_of_known([{name: float(row[name]) for name in names} for row in rows])
        shown = (f"{name} {means[name]:.2f}" for name in names)
        console.print(f"means over {len(rows)} pictures, in percent: {', '.join(shown)}", soft_wrap=True)
        left_out = (f"{name} on {means[UNDEFINED + name]:.0f}" for name in names if UNDEFINED + name in means)
        told = ", ".join(left_out)
        if told:
            console.print(f"undefined and left out: {told}", soft_wrap=True)


# Files ------------------------------------------------------------------------------------------------


def _write_maps(output: Path, path: Path, predictor: Predictor, answers: list[Picture], images: list[Picture]) -> None:
    """Writes mask, probabilities and overlay of a file's pictures, in its format."""
    name = picture_name(path)
    mask = np.stack([predictor.decide(probabilities) for probabilities in answers])
    if mask.max() > 65535:  # colours
        mask = np.stack([mask >> 16, mask >> 8 & 255, mask & 255], axis=-1).astype(np.uint8)
    elif mask.dtype != np.uint8:
        mask = mask.astype(np.uint16)
    _write_map(output / f"{name}_mask", path, mask)
    for number, value in enumerate(predictor.classes[1:], start=1):
        suffix = "" if len(predictor.classes) == 2 else f"_{value}"
        _write_map(
            output / f"{name}_probability{suffix}", path, np.stack([probabilities[number] for probabilities in answers])
        )
    overlays = [
        overlay(np.moveaxis(image, 0, -1), predictor.found(found)) for image, found in zip(images, answers, strict=True)
    ]
    _write_map(output / f"{name}_overlay", path, np.stack(overlays))


def _write_map(stem: Path, source: Path, values: npt.NDArray[Any]) -> None:
    """Writes maps (N, H, W) or (N, H, W, 3) in the format of the file that they are of: NIfTI, TIFF or else PNG; a
    stack of frames becomes a TIFF."""
    coloured = values.ndim == 4
    if is_nifti(source):
        import nibabel

        affine = nibabel.load(source).affine  # type: ignore[attr-defined]
        if coloured:
            values = np.ascontiguousarray(values).view([(colour, "u1") for colour in "RGB"])[..., 0]
        volume = np.moveaxis(values, (0, 1, 2), (2, 1, 0))  # NIfTI counts x first
        volume = volume[..., 0] if len(values) == 1 else volume
        with replacing(stem.with_name(stem.name + ".nii")) as partial:
            partial.write_bytes(nibabel.Nifti1Image(volume, affine).to_bytes())  # type: ignore[no-untyped-call]
    elif is_tiff(source) or len(values) > 1:
        import tifffile

        with replacing(stem.with_name(stem.name + ".tif")) as partial:
            tifffile.imwrite(
                partial, values if len(values) > 1 else values[0], photometric="rgb" if coloured else "minisblack"
            )
    else:
        if values.dtype == np.float32:
            values = (65535 * values).round().astype(np.uint16)
        _write_png(stem.with_name(stem.name + ".png"), values[0])


def _write_png(path: Path, values: npt.NDArray[Any]) -> None:
    from PIL import Image

    with replacing(path) as partial:
        Image.fromarray(values).save(partial, format="PNG")
