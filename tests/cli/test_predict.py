"""`carnet predict`: files, folders, patterns and standard input, as text, CSV, JSON and heat maps."""

from __future__ import annotations

import csv
import errno
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import finished

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def image(photos: Path) -> Path:
    return photos / "valid" / "red" / "8.jpg"


def test_predict(photos: Path, image: Path, trained_run: Path, call: Call) -> None:
    code, out, err = call("predict", trained_run, image, "--top-k", "2")
    assert (code, err.count("\n"), "carnet export" in err) == (0, 1, True)
    assert out.startswith(f"{image}: ")
    assert out.count("%") == 2
    code, out, _ = call("predict", trained_run, photos / "valid" / "red", "--json")
    documents: list[dict[str, Any]] = json.loads(out)
    assert (code, len(documents)) == (0, 4)
    assert sum(row["probability"] for row in documents[0]["predictions"]) == pytest.approx(1)
    with image.open("rb") as piped:
        done = finished([sys.executable, "-m", "carnet", "predict", trained_run, "-", "--top-k", "1"], stdin=piped)
    assert (done.returncode, done.stdout.startswith("-: ")) == (0, True)


def test_an_unreadable_image_is_reported_and_the_others_are_classified(
    image: Path, trained_run: Path, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    code, out, err = call("predict", trained_run, tmp_path / "broken.jpg", image, tmp_path / "gone.jpg")
    assert (code, out.startswith(f"{image}: "), out.count("\n")) == (1, True, 1)
    assert all(str(tmp_path / name) in err for name in ("broken.jpg", "gone.jpg"))
    assert call("predict", trained_run, tmp_path / "empty")[0] == 1


def test_predict_patterns_take_folders_as_a_shell_does(
    photos: Path, image: Path, trained_run: Path, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(photos / "valid", tmp_path / "new")
    shutil.copy(image, tmp_path / "new")
    for pattern in (tmp_path / "new" / "*", f"{tmp_path}/new/**/*.jpg"):
        code, out, _ = call("predict", trained_run, pattern, "--json")
        assert (code, len(json.loads(out))) == (0, 13)


def test_a_folder_that_may_not_be_entered(
    image: Path, trained_run: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_dir(path)

    # Permissions do not stop root, as whom these tests may run.
    monkeypatch.setattr(Path, "is_dir", refuse)
    locked = tmp_path / "locked" / "1.jpg"
    code, out, err = call("predict", trained_run, locked, image)
    assert (code, out.startswith(f"{image}: "), str(locked) in err) == (1, True, True)


def test_predict_skips_the_ignore_list(photos: Path, trained_run: Path, tmp_path: Path, call: Call) -> None:
    folder, image, ignore = photos / "valid" / "red", photos / "valid" / "blue" / "8.jpg", tmp_path / "ignore.txt"
    ignore.write_text(f"8.jpg\n{image}\nnone.jpg\n")
    arguments = ["predict", trained_run, folder, image, "--ignore", ignore]
    code, out, err = call(*arguments)
    assert (code, len(out.splitlines())) == (0, 3)
    assert "Ignored: 2 images" in err
    assert "'none.jpg'" in err
    documents = json.loads(call(*arguments, "--json")[1])
    ignored = [document["image"] for document in documents if "ignored" in document]
    assert (len(documents), ignored) == (5, [str(folder / "8.jpg"), str(image)])
    code, _, err = call("predict", trained_run, image, "--ignore", ignore)
    assert (code, str(ignore) in err) == (2, True)
    code, _, err = call("predict", trained_run, image, "--ignore", tmp_path / "none.txt")
    assert (code, str(tmp_path / "none.txt") in err) == (2, True)


def test_predict_in_every_form(image: Path, exported: Path, tmp_path: Path, call: Call) -> None:
    for name in ("a", "b"):
        shutil.copy(image, tmp_path / f"{name}.jpg")
    bad = tmp_path / "c.jpg"
    bad.write_bytes(b"no image")
    code, out, err = call("predict", exported, tmp_path / "*.jpg", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, [Path(row["image"]).name for row in rows]) == (1, ["a.jpg", "b.jpg", "c.jpg"])
    assert rows[0]["confident"] in ("True", "False")
    assert (rows[0]["error"], rows[2]["class"]) == ("", "")
    assert err == f"carnet: {bad}: {rows[2]['error']}\n"
    code, out, _ = call("predict", exported, tmp_path / "a.jpg", "--json")
    (document,) = json.loads(out)
    assert (code, document["predictions"][0]["class"]) == (0, rows[0]["class"])
    assert isinstance(document["confident"], bool)


def test_heat_maps(image: Path, exported: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    heat, images = tmp_path / "heat", [image, tmp_path / "bad.jpg", image]
    code, out, _ = call("predict", exported, *images, "--top-k", "2", "--json", "--explain", heat)
    first, bad, second = json.loads(out)
    assert (code, len(first["predictions"]), "heat" in bad) == (1, 2, False)
    assert [first["heat"], second["heat"]] == [str(heat / "8.heat.png"), str(heat / "8-2.heat.png")]
    assert sorted(path.name for path in heat.iterdir()) == ["8-2.heat.png", "8.heat.png"]
    # The same prediction as without heat.
    (plain,) = json.loads(call("predict", exported, image, "--top-k", "2", "--json")[1])
    assert [row["class"] for row in first["predictions"]] == [row["class"] for row in plain["predictions"]]
    assert first["predictions"][0]["probability"] == pytest.approx(plain["predictions"][0]["probability"], abs=1e-4)
    assert first["confident"] == plain["confident"]


def test_names_of_heat_maps_differ_on_every_system(image: Path, exported: Path, tmp_path: Path, call: Call) -> None:
    long = "ä" * 120
    images = [tmp_path / "a" / "one.jpg", tmp_path / "b" / "ONE.jpg", tmp_path / "b" / f"{long}.jpg"]
    for copy in images:
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(image, copy)
    code, out, _ = call("predict", exported, *images, "--explain", tmp_path / "heat", "--json")
    names = [Path(document["heat"]).name for document in json.loads(out)]
    # A name with its ending has at most 255 bytes.
    assert (code, names) == (0, ["one.heat.png", "ONE-2.heat.png", f"{'ä' * 100}.heat.png"])


def test_a_run_is_never_confident(image: Path, trained_run: Path, call: Call) -> None:
    code, out, err = call("predict", trained_run, image, "--csv")
    assert (code, [row["confident"] for row in csv.DictReader(io.StringIO(out))]) == (0, [""])
    assert "threshold" in err
    assert json.loads(call("predict", trained_run, image, "--json")[1])[0]["confident"] is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["*.nothing"], "*.nothing"),
        (["a.jpg", "--csv", "--json"], "--csv and --json"),
        (["a.jpg", "--device", "cuda"], "--device cuda"),
        (["a.jpg", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["a.jpg", "--top-k", "0"], "--top-k must be at least 1"),
    ],
)
def test_predict_refuses(exported: Path, flags: list[str], named: str, call: Call) -> None:
    code, out, err = call("predict", exported, *flags)
    assert (code, out) == (2, "")
    assert named in err


@pytest.mark.parametrize("flags", [("--threads", "2"), ("--runtime", "openvino")])
def test_some_flags_need_an_exported_model(trained_run: Path, flags: tuple[str, str], call: Call) -> None:
    code, out, err = call("predict", trained_run, "a.jpg", *flags)
    assert (code, out) == (2, "")
    assert flags[0] in err
    assert ".onnx" in err
