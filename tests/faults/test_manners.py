"""Every command keeps its exit codes, names what is wrong, and shows no control characters."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import shutil
import sys
import tracemalloc
import unicodedata
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from children import finished
from pictures import save_picture
from PIL import Image

from carnet import Classifier
from carnet.cli.main import COMMANDS, run
from carnet.errors import ImageError

SMALL = ["--model", "carnet_n", "--image-size", "32", "--batch-size", "8", "--compile", "off", "--threads", "1"]
CONTROL_CATEGORIES = ("Cc", "Cf", "Zl", "Zp")
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def controls(text: str) -> set[str]:
    """Return the invisible characters in a text that change how others are shown, without its line ends."""
    return {c for c in text if unicodedata.category(c) in CONTROL_CATEGORIES} - {"\n"}


# --patience


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose accuracy is constant while its loss falls, because two classes share an image; and its output."""
    data = tmp_path_factory.mktemp("flat") / "data"
    for k, name in enumerate("abc"):
        for i in range(8):
            save_picture(
                data / "train" / name / f"{i}.png", (200, 60, 60) if name == "c" else (60, 60, 200), 10 * k + i
            )
    for name in "ac":
        shutil.copytree(data / "train" / name, data / "valid" / name, ignore=shutil.ignore_patterns("[1-7].png"))
    (data / "valid" / "b").mkdir()
    with Image.open(data / "valid" / "a" / "0.png") as picture:
        picture.save(data / "valid" / "b" / "0.png", compress_level=1)
    folder, said = data.parent / "run", io.StringIO()
    flags = ["--epochs", "30", "--patience", "3", "--lr", "0.002", "--output", str(folder)]
    with redirect_stdout(said):
        assert run(["train", str(data), *SMALL, *flags]) == 0
    return folder, said.getvalue()


def epochs_of(folder: Path) -> list[tuple[float, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(float(row["valid_top1"]), float(row["valid_loss"])) for row in csv.DictReader(file)]


def test_patience_counts_by_accuracy_alone(impatient: tuple[Path, str]) -> None:
    epochs = epochs_of(impatient[0])
    top1s = [top1 for top1, _ in epochs]
    first = top1s.index(max(top1s))
    assert len(epochs) == first + 1 + 3 < 30
    # If the loss counted as well, it would not have stopped there.
    assert min(loss for _, loss in epochs[first + 1 :]) < epochs[first][1]


def test_the_output_says_why_an_epoch_is_the_best(impatient: tuple[Path, str]) -> None:
    folder, said = impatient
    lines = [line for line in said.splitlines() if line.startswith("epoch ") and ": train loss" in line]
    best = (-1.0, 0.0)
    for (top1, loss), line in zip(epochs_of(folder), lines, strict=True):
        by = "top-1" if top1 > best[0] else "loss" if (top1, -loss) > best else None
        reason = line.partition("best")[2]
        assert [word for word in ("top-1", "loss") if word in reason] == ([by] if by else [])
        best = max(best, (top1, -loss))
    document = json.loads((folder / "result.json").read_text())
    assert (document["best"]["valid_top1"], -document["best"]["valid_loss"]) == best
    assert document["stopped_early"]
    assert any("3 epochs" in note for note in document["notes"])


# Memory


SHORT_OF_MEMORY = """
import json, resource, sys
# Python itself may fail to report that an import found no memory.
import carnet.training.run
from carnet.cli.main import run

def limited(arguments, spare):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, resource.RLIM_INFINITY))
    try:
        return run(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

for number, (warm, arguments, spare) in enumerate(json.loads(sys.argv[1])):
    if warm:
        assert run(warm) == 0
    print(f"{number}:", file=sys.stderr, flush=True)
    print(f"{number}: ended with {limited(arguments, spare)}", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from Linux's /proc")
def test_a_lack_of_memory_is_named(exported: Path, photos: Path, tmp_path: Path) -> None:
    """In a process that has loaded everything, and may then grow by a few MB only."""
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    large = str(tmp_path / "large.png")
    steps: list[tuple[list[str], list[str], int]] = [
        (["predict", str(exported), large], ["predict", str(exported), large], 2**25),
        (["summary", "carnet_n", "--image-size", "64"], ["summary", "carnet_n", "--image-size", "4096"], 2**24),
        ([], ["train", str(photos), *SMALL, "--epochs", "1", "--output", str(tmp_path / "run")], 2**20),
    ]
    ended = finished([sys.executable, "-c", SHORT_OF_MEMORY, json.dumps(steps)])
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    for number in range(len(steps)):
        told, _, end = ended.stderr.partition(f"{number}:\n")[2].partition(f"{number}: ended with ")
        assert "memory" in told, (steps[number], told)
        # A single image that does not fit is reported as one that failed.
        assert end[0] == ("1" if number == 0 else "2")


# Closed streams


CLOSED = """
import json, os, sys
from carnet.cli.main import main

ends = {}
for arguments in json.loads(sys.argv[1]):
    if sys.argv[3] == "again":
        sys.stdout = sys.stderr = None
    try:
        main(arguments)
    except SystemExit as end:
        ends[arguments[0]] = end.code
    except BaseException as error:
        ends[arguments[0]] = repr(error)
with open(sys.argv[2], "w") as file:
    json.dump([ends, sorted(os.readlink(f"/proc/self/fd/{n}") for n in (1, 2))], file)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are read from Linux's /proc")
def test_closed_output_ends_no_command(trained_run: Path, exported: Path, photos: Path, tmp_path: Path) -> None:
    model, image = shutil.copy(exported, tmp_path / "model.onnx"), str(photos / "valid" / "red" / "8.jpg")
    commands = [
        ["predict", str(model), image, str(photos / "gone.jpg")],
        ["train", str(tmp_path / "gone")],
        ["evaluate", str(trained_run), "--output", str(tmp_path / "page.html")],
        ["check", str(photos), "--skip", "labels"],
        ["verify", str(model)],
        ["benchmark", str(model), "--rounds", "1"],
        ["summary", "carnet_n"],
        ["export", str(tmp_path / "gone")],
        ["compare", str(tmp_path / "gone"), str(tmp_path / "gone")],
        ["demo", "--output", str(tmp_path), "--seed", "-1"],
        ["serve", str(model), "--port", "-1"],
        ["push", str(tmp_path / "gone"), "owner/name"],
        ["card", str(tmp_path / "gone"), str(tmp_path / "card")],
        ["completion", "bash"],
    ]
    assert {command[0] for command in commands} == set(COMMANDS)
    answers = tmp_path / "answers.json"
    command = [sys.executable, "-c", CLOSED, json.dumps(commands), answers, "again"]
    assert finished(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]).returncode == 0
    ends, opened = json.loads(answers.read_text())
    expected = {"predict": 1, "train": 2, "export": 2, "compare": 2, "demo": 2, "serve": 2, "card": 2, "push": 2}
    assert ends == {name: expected.get(name, 0) for name in COMMANDS}
    # Libraries write their messages to these numbers, so no file of ours may have them.
    assert opened == [os.devnull, os.devnull]


@pytest.mark.skipif(os.name == "nt", reason="no such shell on Windows")
@pytest.mark.parametrize(("closed", "code"), [(">&-", 2), ("2>&-", 2), (">&- 2>&- <&-", 2), ("2>/dev/full", 2)])
def test_an_error_keeps_its_exit_code_without_streams(closed: str, code: int) -> None:
    if "full" in closed and not Path("/dev/full").exists():
        pytest.skip("there is no full device")
    ended = finished(["sh", "-c", f'"$0" -m carnet verify nowhere.onnx {closed}', sys.executable])
    assert (ended.returncode, ended.stdout, "Traceback" in ended.stderr) == (code, "", False)


# Names


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return [
        "=cmd|' /C calc'!A0",
        "+1",
        "-2+3",
        "@SUM(A1)",
        "\uff1dA1",
        "a;=B1",
        "right\u202eleft\u2066",
        "two\u2028lines",
    ]


@pytest.fixture(scope="module")
def hostile(labels: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run whose classes have such names, the images, and all output of training."""
    root = tmp_path_factory.mktemp("hostile")
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(("filepath", "label", "split"))
    for k, label in enumerate(labels):
        for i in range(4):
            save_picture(root / "images" / f"{k}-{i}.png", (30 * k, 200 - 20 * k, 90), 100 * k + i)
            rows.writerow((f"images/{k}-{i}.png", label, "valid" if i == 3 else "train"))
    (root / "table.csv").write_text(table.getvalue(), encoding="utf-8", newline="")
    said = io.StringIO()
    with redirect_stdout(said):
        assert run(["train", str(root / "table.csv"), *SMALL, "--epochs", "1", "--output", str(root / "run")]) == 0
    return root / "run", root / "images", said.getvalue()


def test_names_control_no_output(
    hostile: tuple[Path, Path, str], labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images, said = hostile
    assert not controls(said)
    assert not controls((folder / "report.html").read_text(encoding="utf-8"))
    for flags in ([], ["--csv"], ["--json"]):
        code, out, err = call(
            capsys, "predict", folder, images, *flags, *([] if "--csv" in flags else ["--top-k", "9"])
        )
        assert (code, controls(out + err)) == (0, set())
    code, out, err = call(capsys, "evaluate", folder)
    assert (code, controls(out + err)) == (0, set())
    assert not controls((folder / "report-valid.html").read_text(encoding="utf-8"))
    assert "right\\u202eleft\\u2066" in out
    # Output for programs is exact.
    documents = json.loads(call(capsys, "predict", folder, images, "--json", "--top-k", "9")[1])
    assert {row["class"] for row in documents[0]["predictions"]} == set(labels)
    with (folder / "data.csv").open(encoding="utf-8", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(labels)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names of files")
def test_every_control_character_is_escaped(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of Unicode's, in the names of missing files."""
    characters = [chr(n) for n in range(1, 0x110000) if unicodedata.category(chr(n)) in CONTROL_CATEGORIES]
    assert len(characters) > 200
    names = [str(tmp_path / f"x{''.join(characters[i : i + 40])}.jpg") for i in range(0, len(characters), 40)]
    for flags in ([], ["--csv"], ["--json"]):
        code, out, err = call(capsys, "predict", exported, *names, *flags)
        assert (code, controls(out + err), err.count("\n")) == (1, set(), len(names))
        if flags == ["--json"]:
            assert [row["image"] for row in json.loads(out)] == names


def test_tables_for_people_contain_no_formula(
    hostile: tuple[Path, Path, str], labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images, _ = hostile
    code, out, _ = call(capsys, "predict", folder, images, "--csv")
    rows = list(csv.reader(io.StringIO(out)))
    assert (code, len(rows)) == (0, 4 * len(labels) + 1)
    for cell in (cell for row in rows for cell in row):
        # Some spreadsheets begin a new cell at each semicolon.
        assert not any(part.lstrip(" ").startswith(FORMULAS) for part in cell.split(";"))


def test_tables_for_people_escape_every_formula(exported: Path, photos: Path, labels: list[str]) -> None:
    from carnet.files import csv_line_for_people

    for label in labels:
        (row,) = csv.reader(io.StringIO(csv_line_for_people(["a.jpg", label, 0.5, -1, None])))
        assert row[::2] == ["a.jpg", "0.5", ""]
        assert row[3] == "-1"
        assert not any(part.startswith(FORMULAS) for part in row[1].split(";"))
        assert label.isprintable() is (label.replace("'", "") == row[1].replace("'", ""))


# The classifier


def test_a_classifier_can_be_sent_to_spawned_processes(exported: Path, photos: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(exported, tmp_path / "model.onnx"))
    images = [path.read_bytes() for path in sorted(photos.glob("valid/*/8.jpg"))]
    classifier = Classifier(path, threads=1)
    classifier.threshold = 0.9
    path.unlink()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(classifier.predict, images) == [classifier.predict(image) for image in images]


def test_buffers_are_accepted_like_bytes(exported: Path, photos: Path) -> None:
    content, image = exported.read_bytes(), (photos / "valid" / "red" / "8.jpg").read_bytes()
    expected = Classifier(exported).predict(image)
    for kind in (bytearray, memoryview):
        classifier = Classifier(kind(content))
        assert classifier.predict(kind(image)) == expected
        assert classifier.explain(kind(image)).prediction.label == expected.label
    with pytest.raises(ImageError):
        classifier.predict(bytearray(b"no image"))


def test_a_buffer_may_be_reused(exported: Path, photos: Path) -> None:
    classifier = Classifier(exported)
    contents = [path.read_bytes() for path in sorted(photos.glob("valid/*/*.jpg"))]
    buffer = bytearray(max(map(len, contents)))

    def filled() -> Iterator[memoryview]:
        for content in contents:
            buffer[: len(content)] = content
            yield memoryview(buffer)[: len(content)]

    assert list(classifier.predict_many(filled(), 4)) == list(classifier.predict_many(contents, 4))


@pytest.mark.parametrize("number", [0, 1, 4, 5, 11])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_predictions_come_before_the_error_of_their_source(
    number: int, batch_size: int, exported: Path, photos: Path
) -> None:
    image = (photos / "valid" / "red" / "8.jpg").read_bytes()

    def source() -> Iterator[bytes]:
        for _ in range(number):
            yield image
        raise ConnectionError("the camera has gone")

    answers = Classifier(exported).predict_many(source(), batch_size)
    assert not any(isinstance(next(answers), ImageError) for _ in range(number))
    with pytest.raises(ConnectionError, match="the camera has gone"):
        next(answers)


# Reports, and the way out


def test_models_in_one_folder_have_reports_of_their_own(
    exported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for name in ("a.onnx", "b.onnx", "b.v2.onnx", "report-valid.onnx"):
        model = shutil.copy(exported, tmp_path / name)
        code, out, _ = call(capsys, "evaluate", model, photos, "--json")
        assert code == 0
        reports.append(Path(json.loads(out)["report"]))
    assert len(set(reports)) == 4
    assert all(f"{name}.onnx" in report.read_text() for name, report in zip(("a", "b", "b.v2"), reports, strict=False))


@pytest.mark.parametrize(
    ("flags", "way_out"),
    [(["--epochs", "12"], "--init"), (["--lr", "0.5", "--seed", "3"], "--init"), (["--model", "carnet_s"], "--resume")],
)
def test_a_resumed_run_refuses_other_settings_and_names_the_way_out(
    flags: list[str], way_out: str, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "train", "--resume", trained_run, *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{flags[0]} {flags[1]}" in err
    assert way_out in err.partition("(was")[2]


# Many images


class Memory(io.TextIOBase):
    """Standard output that records the memory in use at each line, and keeps no lines."""

    def __init__(self) -> None:
        self.used = np.zeros(2000, np.int64)
        self.lines = 0

    def write(self, text: str) -> int:
        if "\n" in text:
            self.used[self.lines] = tracemalloc.get_traced_memory()[0]
            self.lines += 1
        return len(text)

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("flags", [[], ["--csv"]])
def test_predict_keeps_no_memory_per_image(flags: list[str], exported: Path, tmp_path: Path) -> None:
    for number in range(500):
        Image.new("RGB", (4, 4), (number % 256, 9, 9)).save(tmp_path / f"{number}.bmp")
    output = Memory()
    tracemalloc.start()
    try:
        with redirect_stdout(output):
            assert run(["predict", str(exported), str(tmp_path), "--threads", "1", *flags]) == 0
    finally:
        tracemalloc.stop()
    assert output.lines >= 500
    first, last = (np.median(output.used[start : start + 64]) for start in (100, 430))
    # The granularity of the allocator is of this order.
    assert (last - first) / 330 < 300
