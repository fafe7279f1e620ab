"""Where files of this machine are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from sre_triton import cache


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRE_TRITON_CACHE_DIR", "/chosen")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.cache_directory() == Path("/chosen")
    monkeypatch.delenv("SRE_TRITON_CACHE_DIR")
    assert cache.cache_directory() == Path("/xdg/sre_triton")
    monkeypatch.delenv("XDG_CACHE_HOME")
    cache._directory.cache_clear()
    assert cache.cache_directory() == Path("/home/me/.cache/sre_triton")
    cache._directory.cache_clear()
