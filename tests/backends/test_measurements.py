"""The file of a GPU: who reads it, whose word counts, and that nothing in it is lost."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from sre_triton.backends import measurements


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of this machine, apart from that which ships."""
    monkeypatch.setattr(measurements, "_SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(content: dict[str, Any]) -> dict[str, int]:
    return dict(content.get("rows", {}))


def test_this_machine_overrules_what_ships_and_keeps_the_rest(cache: Path) -> None:
    assert measurements.load("A GPU (80 GB)", rows) == {}
    measurements.write(measurements.path_in(measurements._SHIPPED, "A GPU (80 GB)"), rows={"a": 1, "b": 1})
    measurements.write(measurements.path_in(cache, "A GPU (80 GB)"), rows={"b": 2})
    assert measurements.load("A GPU (80 GB)", rows) == {"a": 1, "b": 2}
    assert [path.name for path in cache.iterdir()] == ["gpu-A-GPU--80-GB-.json"]


def test_writing_one_section_keeps_the_others(cache: Path) -> None:
    path = measurements.path_in(cache, "X")
    measurements.write(path, rows={"a": 1}, launch_options={"b": {}})
    measurements.write(path, rows={"c": 2}, note="new")
    expected = {"format": 1, "rows": {"c": 2}, "launch_options": {"b": {}}, "note": "new"}
    assert json.loads(path.read_text()) == expected


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": 2, "rows": {}}', '{"format": 1, "rows": 3}', b"\xff"]
)
def test_what_cannot_be_read_is_named_ignored_and_replaced(content: str | bytes, cache: Path) -> None:
    path = measurements.path_in(cache, "X")
    cache.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(RuntimeWarning, match=r"gpu-X\.json .* is ignored"):
        assert measurements.load("X", rows) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measurements.write(path, rows={"a": 1})
    assert measurements.load("X", rows) == {"a": 1}


def test_a_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    path = measurements.path_in(cache, "X")
    measurements.write(path, rows={"a": 1})
    before = path.read_text()

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        measurements.write(path, rows={"b": 1})
    assert list(cache.iterdir()) == [path]
    assert path.read_text() == before
