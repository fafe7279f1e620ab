"""Photographs with masks, as they lie in folders and tables: any folder, a CSV, DRIVE, CHASE_DB1, STARE and HRF.

The known sets are read as they are distributed:

- DRIVE (J. Staal et al., IEEE TMI 23(4), 2004): ``training`` and ``test``, each with ``images``, and ``1st_manual``
  where there are labels (today's download has none in ``test``), as TIFF and GIF or converted to NIfTI.
- CHASE_DB1 (M. M. Fraz et al., IEEE TBME 59(9), 2012): ``Image_01L.jpg``, ``Image_01L_1stHO.png`` and ``_2ndHO.png``.
- STARE (A. Hoover et al., IEEE TMI 19(3), 2000): ``im0001.ppm``, ``im0001.ah.ppm`` and ``im0001.vk.ppm``, gzipped or
  not, together or in folders.
- HRF (A. Budai et al., Int. J. Biomed. Imaging, 2013): ``images``, ``manual1`` and ``mask``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sre_triton.training.data.pairs import pair_by_name
from sre_triton.training.data.pictures import left_out, picture_files, picture_name
from sre_triton.training.data.splits import SPLITS, Splittable, read_table
from sre_triton.training.options import SegmentOptions

__all__ = ["Source", "Traced", "find_photographs"]


@dataclass(frozen=True)
class Traced(Splittable):
    """A photograph's file, with those of its mask and of its field of view."""

    mask: Path = Path()
    field: Path | None = None

    def files(self) -> tuple[Path, ...]:
        return (self.image, self.mask, *([self.field] if self.field is not None else []))


@dataclass(frozen=True)
class Source:
    """The photographs of a set.

    Attributes:
        name: of the set.
        entries: photographs that have masks.
        usual: the split that is usual for the set, of an entry.
        notes: what the user should know of what was left out.
    """

    name: str
    entries: list[Traced]
    usual: Callable[[Splittable], str] | None = None
    notes: list[str] = field(default_factory=list)


def find_photographs(options: SegmentOptions) -> Source:
    """Finds the photographs and masks of ``--data``; reads no pixels.

    Raises:
        FileNotFoundError: a folder or file is missing; says what was expected.
        ValueError: the folder has no layout that is known, or images and masks do not pair.
    """
    assert options.data is not None
    root = options.data.expanduser()
    if options.observer not in (1, 2):
        raise ValueError(f"--observer must be 1 or 2, got {options.observer}")
    if not root.exists():
        raise FileNotFoundError(f"--data {root} is missing")
    layout = options.layout
    if layout == "auto":
        layout = next((name for name, (_, fits) in _LAYOUTS.items() if fits(root)), "")
        if not layout:
            raise ValueError(
                f"--data {root} has no layout that is known: expected images/ and masks/, or train/, val/ and test/ "
                "with these, a CSV with the columns image and mask, or DRIVE, CHASE_DB1, STARE or HRF as distributed"
            )
    elif not _LAYOUTS[layout][1](root):
        raise ValueError(f"--layout {layout}: {root} is not laid out so")
    source = _LAYOUTS[layout][0](root, options.observer)
    if options.observer == 2 and layout in ("folder", "csv", "hrf"):
        raise ValueError(f"--observer 2: {source.name} has one observer")
    if not source.entries:
        raise ValueError(f"--data {root} holds no image with a mask")
    if options.fov is not None:
        fields, others = picture_files(options.fov.expanduser())
        matched = pair_by_name([entry.image for entry in source.entries], fields, "field of view")
        entries = [replace(entry, field=path) for entry, path in zip(source.entries, matched, strict=True)]
        source = replace(source, entries=entries, notes=[*source.notes, *left_out(others)])
    return source


# A folder, or folders of splits ------------------------------------------------------------------------


def _is_folder(root: Path) -> bool:
    return (root / "images").is_dir() or (root / "train" / "images").is_dir()


def _read_folder(root: Path, observer: int) -> Source:
    entries: list[Traced] = []
    notes: list[str] = []
    homes = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if (root / "images").is_dir():
        if homes:
            raise ValueError(f"{root} has both images/ and {next(iter(homes))}/: keep one of the layouts")
        homes = {"": root}
    for split, home in homes.items():
        images, others = picture_files(home / "images")
        masks, other_masks = picture_files(home / "masks")
        matched = pair_by_name(images, masks)
        notes += left_out(others) + left_out(other_masks)
        unused = sorted(set(masks) - set(matched))
        if unused:
            notes.append(f"{home / 'masks'}: {len(unused)} masks have no image ({unused[0].name})")
        fields: list[Path] | list[None] = [None] * len(images)
        if (home / "fov").is_dir():
            fields = pair_by_name(images, picture_files(home / "fov")[0], "field of view")
        entries += [
            Traced(image, split, mask=mask, field=inside)
            for image, mask, inside in zip(images, matched, fields, strict=True)
        ]
    return Source(root.resolve().name, entries, None, notes)


def _is_csv(root: Path) -> bool:
    return root.is_file() and root.suffix.lower() == ".csv"


def _read_csv(path: Path, observer: int) -> Source:
    entries: list[Traced] = []
    line_of: dict[Path, int] = {}
    for number, row in read_table(path, ("image", "mask")):

        def file(column: str, row: Mapping[str, str] = row, number: int = number) -> Path:
            found = path.parent / row[column]
            if not row[column] or not found.is_file():
                raise FileNotFoundError(f"{path}, line {number}: {column} {row[column]!r} is missing")
            return found

        image, split = file("image"), row.get("split", "")
        if split not in ("", *SPLITS):
            raise ValueError(f"{path}, line {number}: split must be train, val or test, got {split!r}")
        if line_of.setdefault(image, number) != number:
            raise ValueError(f"{path}, line {number}: {image.name} is in line {line_of[image]} already")
        inside = file("fov") if row.get("fov") else None
        entries.append(Traced(image, split, row.get("group", ""), file("mask"), inside))
    return Source(path.stem, entries)


# The known sets ---------------------------------------------------------------------------------------


def _by_key(folder: Path, pattern: str) -> dict[str, Path]:
    """The pictures of a folder by what a pattern finds in their names.

    Raises:
        ValueError: two have the same.
    """
    found: dict[str, Path] = {}
    for path in picture_files(folder)[0]:
        match = re.match(pattern, path.name, re.IGNORECASE)
        if match is not None and found.setdefault(match.group(1).lower(), path) is not path:
            raise ValueError(f"{folder}: {found[match.group(1).lower()].name} and {path.name} are of one image")
    return found


def _matched(images: dict[str, Path], others: dict[str, Path], what: str, where: Path) -> dict[str, Path]:
    missing = sorted(set(images) - set(others))
    if missing:
        raise ValueError(f"{images[missing[0]]} has no {what} in {where}")
    return others


def _is_drive(root: Path) -> bool:
    return (root / "training" / "images").is_dir()


_DRIVE_VALIDATION = 4  # the last images of the training folder


def _read_drive(root: Path, observer: int) -> Source:
    entries: list[Traced] = []
    notes: list[str] = []
    labels = "1st_manual" if observer == 1 else "2nd_manual"
    validation: set[Path] = set()
    for folder, split in (("training", ""), ("test", "test")):
        home = root / folder
        if folder == "test" and not (home / "images").is_dir():
            continue
        images = _by_key(home / "images", r"(\d+)")
        if not (home / labels).is_dir():
            if folder == "training":
                raise FileNotFoundError(
                    f"{home / labels} is missing: DRIVE's training folder has images and {labels}; "
                    "register at https://drive.grand-challenge.org to get it"
                )
            notes.append(f"{home} has no {labels}: its {len(images)} photographs are not used")
            continue
        masks = _matched(images, _by_key(home / labels, r"(\d+)"), "vessels", home / labels)
        fields = _by_key(home / "mask", r"(\d+)") if (home / "mask").is_dir() else None
        if fields is not None:
            _matched(images, fields, "field of view", home / "mask")
        if folder == "training":
            if len(images) <= _DRIVE_VALIDATION:
                raise ValueError(f"{home} has {len(images)} photographs: more than {_DRIVE_VALIDATION} are needed")
            validation = {images[key] for key in sorted(images)[-_DRIVE_VALIDATION:]}
        entries += [
            Traced(images[key], split, mask=masks[key], field=fields[key] if fields else None) for key in sorted(images)
        ]
    return Source("drive", entries, lambda entry: "val" if entry.image in validation else "train", notes)


_CHASE = r"image_(\d+[lr])"


def _is_chase(root: Path) -> bool:
    return root.is_dir() and any(re.match(_CHASE + r"\.jpg$", path.name, re.I) for path in root.iterdir())


def _read_chase(root: Path, observer: int) -> Source:
    images = _by_key(root, _CHASE + r"\.jpg$")
    endings = {1: "1stHO", 2: "2ndHO"}
    masks = _by_key(root, f"{_CHASE}_{endings[observer]}\\.")
    _matched(images, masks, "vessels", root)
    other = endings[3 - observer]
    notes = []
    if _by_key(root, f"{_CHASE}_{other}\\."):
        notes.append(f"the vessels of the other observer (_{other}) are left out; --observer chooses")
    entries = [Traced(images[key], group=key[:-1], mask=masks[key]) for key in sorted(images)]

    def usual(entry: Splittable) -> str:
        person = int(entry.group)
        return "train" if person <= 8 else "val" if person <= 10 else "test"

    return Source("chase_db1", entries, usual, notes)


_STARE = r"(im\d{4})"


def _stare_files(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    return [path for folder in folders for path in picture_files(folder)[0] if re.match(_STARE, path.name, re.I)]


def _is_stare(root: Path) -> bool:
    return any(re.match(_STARE + r"\.(ah|vk)\.", path.name, re.I) for path in _stare_files(root))


def _read_stare(root: Path, observer: int) -> Source:
    kinds: dict[str, dict[str, Path]] = {"": {}, "ah": {}, "vk": {}}
    for path in _stare_files(root):
        match = re.fullmatch(_STARE + r"(?:\.(ah|vk))?", picture_name(path), re.I)
        if match is not None:
            kind = kinds[(match.group(2) or "").lower()]
            if kind.setdefault(match.group(1).lower(), path) is not path:
                raise ValueError(f"{kind[match.group(1).lower()]} and {path} are of one image")
    wanted, other = ("ah", "vk") if observer == 1 else ("vk", "ah")
    images, masks = kinds[""], kinds[wanted]
    orphans = sorted(set(masks) - set(images))
    if orphans:
        raise ValueError(f"{masks[orphans[0]]} has no photograph {orphans[0]}.ppm")
    notes = []
    if kinds[other]:
        notes.append(f"the vessels of the other observer (.{other}) are left out; --observer chooses")
    if len(images) > len(masks):
        notes.append(f"{len(images) - len(masks)} photographs without vessels of .{wanted} are left out")
    return Source("stare", [Traced(images[key], mask=masks[key]) for key in sorted(masks)], None, notes)


def _is_hrf(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "manual1").is_dir()


def _read_hrf(root: Path, observer: int) -> Source:
    key = r"(\d+_(?:dr|g|h))"
    images = _by_key(root / "images", key)
    masks = _matched(images, _by_key(root / "manual1", key), "vessels", root / "manual1")
    fields = None
    if (root / "mask").is_dir():
        fields = _matched(images, _by_key(root / "mask", key), "field of view", root / "mask")
    entries = [Traced(images[k], mask=masks[k], field=fields[k] if fields else None) for k in sorted(images)]
    return Source("hrf", entries)


_LAYOUTS: dict[str, tuple[Callable[[Path, int], Source], Callable[[Path], bool]]] = {
    "csv": (_read_csv, _is_csv),
    "drive": (_read_drive, _is_drive),
    "hrf": (_read_hrf, _is_hrf),
    "chase_db1": (_read_chase, _is_chase),
    "folder": (_read_folder, _is_folder),
    "stare": (_read_stare, _is_stare),
}
"""Of each layout its reader, and whether a folder has it; the first that fits is taken."""
