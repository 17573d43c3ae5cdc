"""Which images a run trains on, holds back and leaves out."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import (
    SMALL,
    StopAt,
    metrics,
    same_weights,
    small,
)

from carnet import evaluate, files
from carnet.errors import (
    DataError,
    RunError,
    StoppedError,
)
from carnet.models.weights import load
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training.preparation import scan_data
from carnet.training.run import train


def test_valid_fraction_is_held_back(flat: Path) -> None:
    recipe = small(valid_fraction=0.5)
    splits = scan_data(flat, recipe, (), Silent()).images.data.splits
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 15, "valid": 15}


def test_valid_seed_chooses_the_held_back_images(flat: Path, tmp_path: Path) -> None:
    def held_back(name: str, **changes: Any) -> tuple[Any, ...]:
        return train(flat, small(epochs=1, **changes), output=tmp_path / name).report.samples

    same = [held_back(f"{seed}", seed=seed, valid_seed=7) for seed in (1, 2)]
    assert same[0] == same[1] == held_back("by its own", seed=7)
    assert same[0] != held_back("otherwise", seed=2)


def test_flat_folder_and_its_split_on_evaluation(flat: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(flat, small(epochs=1), output=run)
    assert result.document["num_images"] == {"train": 24, "valid": 6}
    report = evaluate(run, flat, split="valid")
    assert (report.num_images, report.num_leaked) == (6, 0)
    assert report.top1 == result.top1
    whole = evaluate(run, flat, split="all")
    assert (whole.num_images, whole.num_leaked) == (30, 24)
    with (run / "data.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["split"] for row in rows) == ["train"] * 24 + ["valid"] * 6


def test_what_is_held_back_of_train_is_found_again(flat: Path, photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(flat, data / "train")
    shutil.copytree(photos / "valid", data / "test")
    run = tmp_path / "run"
    result = train(data, small(epochs=1), output=run)
    assert result.document["num_images"] == {"train": 24, "valid": 6, "test": 12}
    numbers = {split: evaluate(run, data, split=split).num_images for split in ("train", "valid", "test", "all")}
    assert numbers == {"train": 24, "valid": 6, "test": 12, "all": 42}
    assert evaluate(run, data).top1 == result.top1
    shutil.copytree(photos / "train", tmp_path / "other" / "train")
    with pytest.raises(DataError, match="valid"):
        evaluate(run, tmp_path / "other")
    assert evaluate(run, tmp_path / "other", split="train").num_images == 24
    with (run / "data.csv").open() as file:
        held_back = next(row for row in csv.DictReader(file) if row["split"] == "valid")
    (data / held_back["filepath"]).unlink()
    report = evaluate(run, data)
    assert report.num_images == 5
    assert "1 of the run's 6 different images in valid cannot be read any more, or are not here" in report.warnings


def test_leaked_images_are_counted(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    shutil.copy(data / "train" / "red" / "0.jpg", data / "valid" / "red" / "9.jpg")
    report = evaluate(trained_run, data)
    assert (report.num_images, report.num_leaked) == (12, 1)
    assert report.top1_without_leaked == pytest.approx(report.correct[~report.leaked].mean())
    (tmp_path / "bare").mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(trained_run / name, tmp_path / "bare" / name)
    unknown = evaluate(tmp_path / "bare", data)
    assert (unknown.num_leaked, unknown.top1_without_leaked) == (None, None)


def test_ignored_images_are_left_out_also_after_a_resume(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    heard = StopAt("epoch 1/2", 1)
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, ignore=("train/red/0.jpg", "valid/blue/9.jpg"), progress=heard)
    assert "Ignored: 2 images" in "\n".join(heard.said)
    result = train(resume=run).document
    assert (result["num_images"], result["num_ignored"]) == ({"train": 23, "valid": 11}, 2)
    with pytest.raises(RunError, match=r"1\.jpg"):
        train(resume=run, ignore=("train/red/1.jpg",))


def test_a_list_that_counts_from_the_current_folder_holds_elsewhere(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.chdir(photos.parent)
    with pytest.raises(StoppedError):
        train(photos, SMALL, output=run, ignore=("photos/train/red/0.jpg", "none.jpg"), progress=StopAt("epoch 1/2", 1))
    monkeypatch.chdir(tmp_path)
    assert train(resume=run).document["num_ignored"] == 1
    assert RunFolder(run).read_config()["data"]["ignore"] == ["train/red/0.jpg"]


def test_every_form_gives_the_same_weights(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    archive = Path(shutil.make_archive(str(tmp_path / "pictures"), "zip", photos.parent, photos.name))
    table = photos.parent / "photos.csv"
    rows = [
        {"class id": "7", "filepaths": path.relative_to(photos.parent).as_posix(), "labels": path.parent.name,
         "data set": path.parent.parent.name}
        for path in sorted(photos.rglob("*.jpg"), reverse=True)
    ]  # fmt: skip
    files.write_text(table, files.csv_text(rows))
    monkeypatch.chdir(tmp_path)
    runs = [train(data, small(epochs=1)).run for data in (photos, archive, table)]
    assert [str(run) for run in runs] == ["runs/photos-carnet_n", "runs/pictures-carnet_n", "runs/photos-carnet_n-2"]
    for run in runs[1:]:
        assert same_weights(run, runs[0])
        assert metrics(run) == metrics(runs[0])
        assert load(run).spec.classes == load(runs[0]).spec.classes
    assert evaluate(runs[0], table).top1 == evaluate(runs[2], archive).top1
    table.unlink()
