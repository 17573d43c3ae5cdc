import os
from pathlib import Path

import pytest

from carnet import files
from carnet.errors import OutputError, RunError
from carnet.run_folder import RunFolder, new_run_path


def test_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: No space left on device"):
        files.write_text(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file"):
        files.write_bytes(tmp_path, b"")
    with pytest.raises(OutputError, match="No such file"):
        files.write_bytes(tmp_path / "gone" / "a", b"")


def test_json_keeps_letters_and_says_what_is_wrong(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"class": "Käse"})
    assert "Käse" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert files.read_json(tmp_path / "a.json") == {"class": "Käse"}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*a\.json"):
        files.read_json(tmp_path / "a.json")


def test_json_has_no_word_for_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"a": [float("nan"), float("inf"), 1.5], "b": (float("nan"),)})
    assert files.read_json(tmp_path / "a.json") == {"a": [None, None, 1.5], "b": [None]}


@pytest.mark.parametrize(
    "document",
    ["[]", "{}", '{"recipe": {}}', '{"recipe": {}, "plan": [], "data": {}}', '{"recipe": {}, "plan": {}, "data": {}}'],
)
def test_damaged_config(document: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(document)
    with pytest.raises(RunError, match="does not describe a run"):
        RunFolder.open(tmp_path).read_config()


def test_run_folders(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        RunFolder.open(tmp_path / "gone")
    with pytest.raises(RunError, match="is not a run"):
        RunFolder.open(tmp_path)
    assert new_run_path(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert new_run_path(tmp_path / "a") == tmp_path / "a-2"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="exists"):
        RunFolder.new(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot create the folder"):
        RunFolder.new(tmp_path / "file" / "below").create([], {})
