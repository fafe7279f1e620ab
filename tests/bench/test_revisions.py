"""Networks of two checkouts, raced: this one against itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import revisions


def test_every_checkout_is_timed_by_its_own_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(revisions, "CASES", (("fused", "channels_last"), ("train", "nchw")))
    options = ["--batch", "1", "--size", "16", "--rounds", "2", "--threads", "1"]
    assert revisions.main([str(revisions.HERE), *options]) == 0
    printed = capsys.readouterr().out
    assert all(heading in printed for heading in ("other / here", "plain / here", "fused", "train"))


def test_a_process_that_imports_another_checkout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sre_triton").mkdir()  # no package: Python goes on to the one that is installed
    with pytest.raises(RuntimeError, match="imported sre_triton from"):
        revisions.Worker(tmp_path, revisions.PLAIN, 1, 1, 16)


def test_a_folder_without_the_package_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert revisions.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
