"""`carnet evaluate`: of runs and exported models, on folders, tables and archives."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import write_table

Call = Callable[..., tuple[int, str, str]]


def test_evaluate(photos: Path, trained_run: Path, tmp_path: Path, call: Call) -> None:
    page = tmp_path / "page.html"
    code, out, _ = call("evaluate", trained_run, photos, "--output", page, "--json")
    document = json.loads(out)
    assert code == 0
    assert {"num_images", "top1", "top5", "macro_f1", "top1_ci95", "num_leaked", "top1_without_leaked"} <= set(document)
    assert [row["name"] for row in document["per_class"]] == ["blue", "green", "red"]
    assert (document["num_images"], document["num_leaked"]) == (12, 0)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    code, out, _ = call("evaluate", trained_run, photos, "--split", "train", "--output", page)
    assert code == 0
    assert "24 images" in out
    code, _, err = call("evaluate", trained_run, photos, "--split", "test")
    assert (code, "test" in err, "train, valid" in err) == (2, True, True)


def test_evaluate_skips_and_counts_unreadable_images(
    photos: Path, trained_run: Path, tmp_path: Path, call: Call
) -> None:
    data, page = tmp_path / "data", tmp_path / "page.html"
    shutil.copytree(photos, data)
    (data / "valid" / "red" / "0.jpg").write_bytes(b"broken")
    (data / "valid" / "red" / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (data / "valid" / "loose.jpg").write_bytes(b"broken")
    code, _, err = call("evaluate", trained_run, data, "--output", page)
    assert (code, "2 of 14 images" in err, "--skip-unreadable" in err) == (2, True, True)
    code, out, _ = call("evaluate", trained_run, data, "--output", page, "--skip-unreadable")
    assert code == 0
    assert "dangling.jpg" in out
    assert "1 image directly in" in out
    code, out, _ = call("evaluate", trained_run, data, "--output", page, "--skip-unreadable", "--json")
    document = json.loads(out)
    assert (document["num_images"], document["num_skipped_unreadable"], document["num_leaked"]) == (12, 2, 0)


def test_evaluate_a_table_and_an_archive_as_the_folder(
    photos: Path, trained_run: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    archive = Path(shutil.make_archive(str(tmp_path / "pets"), "gztar", photos.parent, photos.name))
    rows = [f"{path},{path.parts[-2]},{path.parts[-3]}" for path in sorted(photos.glob("*/*/*"))]
    (tmp_path / "pets.csv").write_text("\n".join(["path,label,split", *rows]))
    flags = ["--output", tmp_path / "page.html", "--json"]
    documents = [
        json.loads(call("evaluate", trained_run, data, *flags)[1]) for data in (photos, archive, tmp_path / "pets.csv")
    ]
    assert documents[0]["num_images"] == 12
    assert documents[0] == documents[1] == documents[2]
    assert "on pets</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, err = call("evaluate", trained_run, archive, "--split", "test", *flags)
    assert (code, str(archive) in err) == (2, True)


def test_evaluate_skips_the_ignore_list(photos: Path, trained_run: Path, tmp_path: Path, call: Call) -> None:
    ignore, page = tmp_path / "ignore.txt", tmp_path / "page.html"
    ignore.write_text(f"train/red/0.jpg\nvalid/red/8.jpg\n{photos / 'valid/red/9.jpg'}\nnone.jpg\n")
    flags = ["--ignore", ignore, "--output", page]
    code, out, _ = call("evaluate", trained_run, photos, *flags)
    assert (code, "Ignored: 2 images" in out, "10 images" in out) == (0, True, True)
    assert "'none.jpg'" in out
    assert "Ignored: 2 images" in page.read_text(encoding="utf-8")
    document = json.loads(call("evaluate", trained_run, photos, *flags, "--json")[1])
    assert (document["num_images"], document["num_ignored"]) == (10, 2)
    document = json.loads(call("evaluate", trained_run, photos, *flags, "--json", "--split", "all")[1])
    assert (document["num_images"], document["num_ignored"]) == (33, 3)
    ignore.write_text("\n".join(str(path) for path in photos.glob("valid/*/*")))
    code, _, err = call("evaluate", trained_run, photos, *flags)
    assert (code, str(photos) in err, "ignore list" in err) == (2, True, True)


def test_the_ignore_list_applies_to_a_folder_that_the_run_divided(
    flat: Path, trained_run: Path, tmp_path: Path, call: Call
) -> None:
    """The held-out images are found by their content, and so are the ignored ones among them."""
    run_folder = tmp_path / "run"
    shutil.copytree(trained_run, run_folder)
    lines = ["split,label,filepath,sha256"]
    for path in sorted(flat.glob("*/*")):
        split = "valid" if path.stem in "123" else "train"
        lines.append(f"{split},{path.parent.name},x,{hashlib.sha256(path.read_bytes()).hexdigest()}")
    write_table(run_folder, "\n".join(lines))
    (tmp_path / "ignore.txt").write_text("red/1.png\nred/4.png\n")
    flags = ["--ignore", tmp_path / "ignore.txt", "--output", tmp_path / "page.html", "--json"]
    document = json.loads(call("evaluate", run_folder, flat, *flags)[1])
    assert (document["num_images"], document["num_ignored"]) == (8, 1)


def test_the_data_of_the_run_is_the_default(trained_run: Path, exported: Path, tmp_path: Path, call: Call) -> None:
    document = json.loads(call("evaluate", trained_run, "--output", tmp_path / "page.html", "--json")[1])
    assert document["num_images"] == 12
    code, _, err = call("evaluate", exported)
    assert (code, err.count("\n"), f"carnet evaluate {exported} DATA" in err) == (2, 1, True)


def test_a_folder_without_splits(flat: Path, trained_run: Path, exported: Path, tmp_path: Path, call: Call) -> None:
    for model in (exported, trained_run):
        code, _, err = call("evaluate", model, flat)
        assert (code, str(flat) in err, "--split all" in err) == (2, True, True)
    flags = ["--split", "all", "--output", tmp_path / "page.html", "--json"]
    document = json.loads(call("evaluate", exported, flat, *flags)[1])
    assert (document["num_images"], document["num_leaked"]) == (30, None)


def test_evaluate_refuses_nonsense(photos: Path, trained_run: Path, call: Call) -> None:
    for flags, named in (
        (["--batch-size", "0"], "--batch-size"),
        (["--output", str(photos)], str(photos)),
        (["--output", str(trained_run / "model.json")], ".html"),
        (["--output", str(photos / "gone" / "page.html")], str(photos / "gone")),
        (["--split", "everything"], "everything"),
    ):
        code, _, err = call("evaluate", trained_run, photos, *flags)
        assert (code, named in err, "Traceback" in err) == (2, True, False)
    assert json.loads((trained_run / "model.json").read_text())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of files")
def test_a_page_that_cannot_be_written_does_not_cost_the_numbers(trained_run: Path, tmp_path: Path, call: Call) -> None:
    import resource

    page, limits = tmp_path / "page.html", resource.getrlimit(resource.RLIMIT_FSIZE)

    def evaluated_on_a_full_disk(*flags: str) -> tuple[int, str, str]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            return call("evaluate", trained_run, "--output", page, *flags)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    code, out, err = evaluated_on_a_full_disk()
    assert (code, "top-1 " in out, str(page) in err) == (2, True, True)
    assert str(page) not in out
    assert json.loads(evaluated_on_a_full_disk("--json")[1])["top1"] >= 0
    assert not page.exists()


def test_training_and_commands_agree(photos: Path, trained_run: Path, tmp_path: Path, call: Call) -> None:
    """The validation of the last epoch, evaluate and predict see the same images and give the same predictions."""
    history = (trained_run / "metrics.csv").read_text().splitlines()[-1].split(",")
    page = tmp_path / "page.html"
    document = json.loads(call("evaluate", trained_run, photos, "--json", "--output", page)[1])
    assert float(history[5]) == document["top1"]
    assert float(history[4]) == pytest.approx(document["loss"], rel=1e-6)
    predicted: list[dict[str, Any]] = json.loads(call("predict", trained_run, photos / "valid", "--json")[1])
    right = sum(Path(row["image"]).parent.name == row["predictions"][0]["class"] for row in predicted)
    assert right / len(predicted) == document["top1"]


def test_an_exported_model_is_evaluated_like_its_run(
    exported: Path, trained_run: Path, photos: Path, tmp_path: Path, call: Call
) -> None:
    target = tmp_path / "report.html"
    run_numbers, file_numbers = (
        json.loads(call("evaluate", model, photos, "--json", "--output", target)[1])
        for model in (trained_run, exported)
    )
    assert file_numbers["confusion"] == run_numbers["confusion"]
    assert file_numbers["num_leaked"] is None
    assert "photos.onnx, a carnet_n" in target.read_text(encoding="utf-8")
