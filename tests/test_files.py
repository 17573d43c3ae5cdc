import csv
import os
import threading
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
    with pytest.raises(OutputError, match=r"a\.txt.*No space left on device"):
        files.write_text(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_place_of_a_file_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=tmp_path.name):
        files.write_bytes(tmp_path, b"")
    with pytest.raises(OutputError, match="gone"):
        files.write_bytes(tmp_path / "gone" / "a", b"")


def test_json_keeps_letters_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"class": "Käse"})
    assert "Käse" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert files.read_json(tmp_path / "a.json") == {"class": "Käse"}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"a": [float("nan"), float("inf"), 1.5], "b": (float("nan"),)})
    assert files.read_json(tmp_path / "a.json") == {"a": [None, None, 1.5], "b": [None]}


@pytest.mark.parametrize(
    "document",
    ["[]", "{}", '{"recipe": {}}', '{"recipe": {}, "plan": [], "data": {}}', '{"recipe": {}, "plan": {}, "data": {}}'],
)
def test_a_damaged_config_is_named(document: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(document)
    with pytest.raises(RunError, match=r"config\.json"):
        RunFolder.open(tmp_path).read_config()


def test_what_is_not_a_run_and_what_is_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone"):
        RunFolder.open(tmp_path / "gone")
    with pytest.raises(RunError, match=r"config\.json .* model\.json"):
        RunFolder.open(tmp_path)
    assert new_run_path(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert new_run_path(tmp_path / "a") == tmp_path / "a-2"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file .*--resume .*--output"):
        RunFolder.new(tmp_path / "file")
    with pytest.raises(OutputError, match=str(Path("file") / "below")):
        RunFolder.new(tmp_path / "file" / "below").create([], {})


def test_a_folder_left_by_a_kill_is_used_again_and_a_table_of_the_users_is_not(tmp_path: Path) -> None:
    run = RunFolder.new(tmp_path / "run")
    run.create([{"split": "train", "label": "cat", "filepath": "a.jpg", "sha256": "0", "width": "1"}], {})
    (run.path / "curves.png").write_bytes(b"drawn")
    copy = run.copy_to(tmp_path / "copy")
    assert {file.name for file in copy.path.iterdir()} == {"data.csv", "config.json", "curves.png"}
    with pytest.raises(OutputError, match=r"copy .*--output"):
        RunFolder.new(tmp_path / "copy")
    (tmp_path / "again").mkdir()
    (tmp_path / ".again.tmp").mkdir()
    (tmp_path / ".again.tmp" / "last.ckpt").write_bytes(b"left by a kill")
    assert {file.name for file in run.copy_to(tmp_path / "again").path.iterdir()} == {
        *("data.csv", "config.json", "curves.png")
    }
    run.config.unlink()
    with pytest.raises(OutputError, match=r"run .*--output"):
        RunFolder.new(run.path)
    (run.path / "curves.png").unlink()
    assert RunFolder.new(run.path) == run
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.csv").write_text("filepath,label\na.jpg,cat\n")
    with pytest.raises(OutputError, match=r"mine .*--output"):
        RunFolder.new(tmp_path / "mine")


def test_json_in_ascii(tmp_path: Path) -> None:
    assert files.to_json("dögs", ascii_only=True) == '"d\\u00f6gs"'
    assert files.to_json("dögs") == '"dögs"'


class HeldOpen:
    """A path that another program holds open at the first attempts to rename it, as virus scanners do on Windows."""

    def __init__(self, attempts: int) -> None:
        self.attempts, self.name = attempts, Path()

    def replace(self, name: Path) -> None:
        if self.attempts:
            self.attempts -= 1
            raise PermissionError
        self.name = name


def test_renaming_is_tried_again() -> None:
    held = HeldOpen(attempts=2)
    files.rename(held, Path("new"), pauses=(0.0, 0.0, 0.0))
    assert held.name == Path("new")
    with pytest.raises(PermissionError):
        files.rename(HeldOpen(attempts=4), Path("new"), pauses=(0.0, 0.0, 0.0))


def test_a_folder_that_cannot_be_made_is_noticed_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file .*--output"):
        files.check_folder(tmp_path / "file" / "runs" / "a")
    files.check_folder(tmp_path / "new" / "runs")
    assert not (tmp_path / "new").exists()


def test_a_place_where_nothing_may_be_written_is_noticed_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_target(tmp_path / "report.html", ".html")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for check in (lambda: files.check_target(tmp_path / "report.html", ".html"), lambda: files.check_folder(tmp_path)):
        with pytest.raises(OutputError, match=f"{tmp_path.name}.*--output"):
            check()


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / ("a" * 251 + ".png"), b"drawn")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"drawn"]


@pytest.mark.parametrize("name", ["cat\r", "a\rb", "a\r\nb", "a\nb", 'a"b', "a,b", " a "])
def test_a_table_reads_back_what_was_written(name: str, tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.csv", files.csv_text([{"split": "train", name: 1}, {"split": name, name: None}]))
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"split": "train", name: "1"}, {"split": name, name: ""}]
    assert files.csv_line(["a", 1.5, True, None]) == "a,1.5,True,\n"


def test_runs_that_begin_at_once_get_different_names(tmp_path: Path) -> None:
    runs = [RunFolder.numbered(tmp_path / "runs" / "photos") for _ in range(3)]
    assert [run.path.name for run in runs] == ["photos", "photos-2", "photos-3"]
    assert all(RunFolder.new(run.path) == run for run in runs)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert RunFolder.numbered(tmp_path / "gone").path.name == "gone-2"


def test_only_one_process_holds_a_run(tmp_path: Path) -> None:
    run = RunFolder.new(tmp_path / "run")
    run.create([], {"seed": 1})
    with run.held():
        with (
            pytest.raises(RunError, match="run is being trained"),
            run.held(),
        ):
            pass
        assert files.read_json(run.config)["seed"] == 1
    with run.held():
        pass
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "data.csv"]


def test_a_run_is_not_copied_over_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.new(tmp_path / "run")
    run.create([], {})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="--output"):
        run.copy_to(Path())


def test_the_next_writer_removes_the_files_of_killed_ones(tmp_path: Path) -> None:
    """Files of writers at work, and files of other programs, stay."""
    abandoned, in_use, other = (tmp_path / f".{name}.tmp" for name in ("1.0123abcd", "2.0123abcd", "theirs"))
    for path in (abandoned, in_use, other):
        path.write_bytes(b"half")
    with files.locked(in_use):
        files.write_bytes(tmp_path / "whole", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", in_use.name, other.name}


def test_a_writer_whose_file_was_removed_as_abandoned_writes_it_again(tmp_path: Path) -> None:
    """File systems without locks cannot tell who is at work on another machine."""
    removed: list[Path] = []
    started = threading.Event()

    def remove_the_first() -> None:
        while not removed:
            started.set()
            for path in tmp_path.glob(".*.tmp"):
                path.unlink()
                removed.append(path)

    other = threading.Thread(target=remove_the_first)
    other.start()
    assert started.wait(30)
    content = bytes(2**26)
    files.write_bytes(tmp_path / "whole", content)
    other.join(30)
    assert len(removed) == 1
    assert (tmp_path / "whole").read_bytes() == content
