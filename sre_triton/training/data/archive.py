"""Arrays of ``.npz`` files that need not fit in memory: mapped where they lie, or unpacked once.

``np.load`` maps no member of an archive. One that is stored as it is can be mapped at its place in the archive. One
that is compressed is unpacked, piece by piece, into a file beside the other results of this machine, which later
trainings find again. Processes that train together share the pages of either.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sre_triton.cache import cache_directory
from sre_triton.training.files import replacing

__all__ = ["Archive"]

HELD = 64 * 2**20
"""Bytes up to which an array is read into memory."""

_PIECE = 2**20
_LOCAL_HEADER = 30  # bytes of a member's header before its name; lengths of name and extra field are the last four


class Archive:
    """The arrays of an ``.npz`` file; use as a context.

    Args:
        path: of the file.

    Raises:
        zipfile.BadZipFile: it is none, or incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = zipfile.ZipFile(path)
        self.names = {name.removesuffix(".npy") for name in self._file.namelist()}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """An array, in memory or mapped; what is written to it stays in this process.

        Raises:
            KeyError: there is none of this name.
            ValueError: it is not an array of plain numbers.
            zipfile.BadZipFile, zlib.error, EOFError: it is damaged.
            OSError: it cannot be unpacked for want of space.
        """
        member = self._file.getinfo(f"{name}.npy")
        if member.file_size <= HELD:
            with self._file.open(member) as content:
                return np.lib.format.read_array(content, allow_pickle=False)
        if member.compress_type == zipfile.ZIP_STORED:
            with self._file.open(member) as content:
                while content.read(_PIECE):  # the archive's check sums are compared at the end
                    pass
            with self.path.open("rb") as file:
                file.seek(member.header_offset)
                header = file.read(_LOCAL_HEADER)
                lengths = int.from_bytes(header[-4:-2], "little") + int.from_bytes(header[-2:], "little")
                return _mapped(self.path, member.header_offset + _LOCAL_HEADER + lengths)
        return _mapped(self._unpacked(member), 0)

    def checksum(self, name: str) -> str:
        """What tells an array's content from another's, as the archive has it."""
        member = self._file.getinfo(f"{name}.npy")
        return f"{name} {member.file_size} {member.CRC:08x}"

    def _unpacked(self, member: zipfile.ZipInfo) -> Path:
        """The file of a compressed member, which is made if there is none of this state of the archive."""
        about = self.path.stat()
        place = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        stem = f"{self.path.stem}-{place}-{member.filename.removesuffix('.npy')}"
        unpacked = cache_directory() / "arrays" / f"{stem}-{about.st_mtime_ns}-{member.CRC:08x}.npy"
        if not unpacked.is_file() or unpacked.stat().st_size != member.file_size:
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            with replacing(unpacked) as partial, partial.open("wb") as file, self._file.open(member) as content:
                shutil.copyfileobj(content, file, _PIECE)
        for older in unpacked.parent.glob(f"{stem}-*.npy"):
            if older != unpacked:
                older.unlink(missing_ok=True)
        return unpacked


def _mapped(path: Path, start: int) -> npt.NDArray[np.generic]:
    """The array that begins at byte ``start`` of a file."""
    with path.open("rb") as file:
        file.seek(start)
        shape, fortran, dtype = _header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return _Mapped(path, dtype, "c", offset, shape, "F" if fortran else "C")


class _Mapped(np.memmap[Any, Any]):
    """A mapped array, or a view of one, that is pickled as the place where it lies, and not as all that it holds."""

    def __reduce__(self) -> Any:
        whole: Any = self
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if not isinstance(whole, np.memmap) or whole.filename is None:  # a copy
            return super().__reduce__()
        first = self.__array_interface__["data"][0] - whole.__array_interface__["data"][0] + whole.offset
        return _reopened, (whole.filename, self.dtype, first, self.shape, self.strides)


def _reopened(
    path: Path, dtype: np.dtype[Any], first: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    """The array whose first element is at byte ``first`` of a file."""
    content = _Mapped(path, np.uint8, "c")
    mapped = np.ndarray(shape, dtype, content, first, strides)  # type: ignore[arg-type]
    return mapped.view(_Mapped)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its arrays are of version {version} of NumPy's format, not 1.0 or 2.0")
    return read(file)
