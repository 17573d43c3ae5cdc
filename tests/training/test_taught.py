"""Whole runs that learn from a teacher's answers, and from images without labels that it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from conftest import COLOURS
from pictures import save_picture
from runs import Listening, StopAt, metrics, resolved, same_weights, small
from teaching import record_of, scanned

import carnet
from carnet.cli.main import run
from carnet.errors import DataError, RunError, StoppedError
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training.distillation import ask_teacher
from carnet.training.run import train
from carnet.training.scanning import DataScan
from carnet.training.schedule import View


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Twelve new pictures in two folders; one of them twice, one is in valid and one in train."""
    root = tmp_path_factory.mktemp("unlabeled") / "more"
    for k, colour in enumerate(COLOURS.values()):
        for i in range(4):
            save_picture(root / f"day {i % 2}" / f"{k}-{i}.jpg", colour, seed=1000 + 100 * k + i)
    (root / "later").mkdir()
    shutil.copy(root / "day 0" / "0-0.jpg", root / "later" / "again.jpg")
    shutil.copy(photos / "valid" / "red" / "9.jpg", root / "held-out.jpg")
    shutil.copy(photos / "train" / "blue" / "2.jpg", root / "known.jpg")
    return root


@pytest.fixture(scope="module")
def taught(photos: Path, trained_run: Path, unlabeled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("taught") / "run"
    train(photos, small(teacher=str(trained_run), unlabeled=str(unlabeled)), output=path)
    return path


def stop_in_the_first_epoch(photos: Path, path: Path, **changes: str) -> None:
    """Begin a run, and stop it after two steps."""
    with pytest.raises(StoppedError):
        train(photos, small(**changes), output=path, progress=StopAt("epoch 1/2", 2))


def test_images_without_labels_are_trained_on_and_never_evaluated(taught: Path) -> None:
    result, rows = json.loads((taught / "result.json").read_text()), RunFolder(taught).images()
    assert result["num_images"] == {"train": 24, "valid": 12, "unlabeled": 12}
    assert result["valid"]["num_images"] == 12
    assert sum(row["split"] == "unlabeled" for row in rows) == 12
    assert {row["label"] for row in rows if row["split"] == "unlabeled"} == {""}
    # 36 images in batches of 8, the last of which takes 4.
    assert record_of(taught)["resolved"]["num_steps"] == 2 * 5


def test_the_pipeline_shows_images_without_labels_as_the_teacher_names_them(
    photos: Path, unlabeled: Path, trained_run: Path
) -> None:
    images = scanned(photos, unlabeled)
    config = resolved(small(teacher=str(trained_run)), num_train=36, min_crop=0.25)
    taught = ask_teacher(images, config, progress=Silent())
    spec = carnet.load(trained_run).spec
    pipeline = DataScan(images, 48).pipeline(config, spec, taught.answers)
    seen = [item for items in pipeline.items(0, 0) for item in items]
    assert images.unlabeled is not None
    assert {item.source for item in seen} == {
        *(sample.path for sample in images.data.splits["train"]),
        *images.unlabeled.paths,
    }
    # The first figure of a name is the place of its class.
    named = [item for item in seen if item.place >= 24]
    assert len(named) == 12
    assert sum(item.label == int(item.source.name[0]) for item in named) >= 10
    (batch,) = [batch for batch in pipeline.batches(0, 0, lambda _: View(48, 0.25)) if len(batch) == 4]
    assert batch.answers is not None
    assert batch.features is not None
    assert (batch.answers.shape, batch.features.shape) == ((4, 3), (4, taught.answers.features.shape[1]))


def test_images_without_labels_that_have_one_are_left_out_and_said(photos: Path, unlabeled: Path) -> None:
    images = scanned(photos, unlabeled)
    assert images.num_unlabeled == 12
    for name, split in (("held-out.jpg", "valid"), ("known.jpg", "train"), ("again.jpg", "among")):
        assert any(name in line for line in images.warnings if split in line), images.warnings


def test_images_without_labels_decide_what_the_data_is(photos: Path, unlabeled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(unlabeled, copy)

    assert scanned(photos, copy).content_hash == scanned(photos, unlabeled).content_hash
    assert scanned(photos).content_hash != scanned(photos, unlabeled).content_hash
    (copy / "day 1" / "2-3.jpg").unlink()
    assert scanned(photos, copy).content_hash != scanned(photos, unlabeled).content_hash


def test_a_damaged_image_without_label_is_named_or_skipped(
    photos: Path, tmp_path: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "more"
    save_picture(more / "good.jpg", (1, 2, 3), seed=77)
    (more / "bad.jpg").write_bytes((more / "good.jpg").read_bytes()[:50])
    flags = ["--teacher", str(trained_run), "--unlabeled", str(more), "--model", "carnet_n", "--image-size", "48"]
    command = ["train", str(photos), *flags, "--epochs", "1", "--output", str(tmp_path / "run")]
    assert run(command) == 2
    assert "bad.jpg" in capsys.readouterr().err
    (tmp_path / "ignore.txt").write_text(str(more / "bad.jpg"))
    assert run([*command, "--ignore", str(tmp_path / "ignore.txt")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_ignored"] == 1
    train(resume=tmp_path / "run")
    assert run([*command[:-1], str(tmp_path / "other"), "--skip-unreadable"]) == 0
    assert json.loads((tmp_path / "other" / "result.json").read_text())["num_skipped_unreadable"] == 1


def test_pretrained_weights_teach(photos: Path, tmp_path: Path) -> None:
    result = train(photos, small(teacher="efficientnet_lite0"), output=tmp_path / "run")
    teacher = record_of(tmp_path / "run")["teacher"]
    assert teacher["name"] == "pretrained efficientnet_lite0"
    assert teacher["head"]["top1"] == 1
    assert result.document["teacher"] == teacher["name"]


@pytest.mark.parametrize("channels", [1, 4])
def test_a_student_may_see_other_channels(
    channels: Literal[1, 4], photos: Path, trained_run: Path, tmp_path: Path
) -> None:
    train(photos, small(teacher=str(trained_run), in_channels=channels, epochs=1), output=tmp_path / "run")


def test_a_student_may_start_from_trained_weights(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    train(photos, small(teacher=str(trained_run), epochs=1), output=tmp_path / "run", init=trained_run)
    assert record_of(tmp_path / "run")["resolved"]["is_fine_tuning"]


def test_a_run_that_knows_other_classes_gives_its_features(flat: Path, trained_run: Path, tmp_path: Path) -> None:
    (flat / "red").rename(flat / "scarlet")
    result = train(flat, small(teacher=str(trained_run)), output=tmp_path / "run")
    assert record_of(tmp_path / "run")["teacher"]["head"]["num_fitted"] == result.document["num_images"]["train"]


@pytest.mark.parametrize("lost", [(), ("last.ckpt", "previous.ckpt"), ("answers.safetensors",)])
def test_a_taught_run_is_resumed_exactly(
    lost: Sequence[str], photos: Path, trained_run: Path, unlabeled: Path, taught: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    stop_in_the_first_epoch(photos, path, teacher=str(trained_run), unlabeled=str(unlabeled))
    for name in lost:
        (path / name).unlink(missing_ok=True)
    train(resume=path)
    assert same_weights(path, taught)
    assert metrics(path) == metrics(taught)


def test_answers_that_are_gone_with_their_teacher_are_one_line(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    teacher, path = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(trained_run, teacher)
    stop_in_the_first_epoch(photos, path, teacher=str(teacher))
    content = (path / "answers.safetensors").read_bytes()
    (path / "answers.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.rmtree(teacher)
    with pytest.raises(RunError):
        train(resume=path)
    (path / "answers.safetensors").write_bytes(content)
    train(resume=path)


def test_several_processes_learn_what_one_does(
    photos: Path, trained_run: Path, tmp_path: Path, quick_processes: None
) -> None:
    # The first step's loss is that of the same images with the same answers, before any update.
    asked = small(teacher=str(trained_run), epochs=1, batch_size=24, threads=1, cutmix=0.0, precision="fp32")
    for number in (1, 2):
        train(photos, replace(asked, devices=number), output=tmp_path / str(number))
    one, two = (float(metrics(tmp_path / str(number))[0]["train_loss"]) for number in (1, 2))
    assert one == pytest.approx(two, abs=0.05)
    answers = [(tmp_path / str(number) / "answers.safetensors").read_bytes() for number in (1, 2)]
    assert answers[0] == answers[1]


def test_a_budget_says_how_it_is_divided(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    said = Listening()
    train(photos, small(teacher=str(trained_run), epochs=None, budget="40s"), output=tmp_path / "run", progress=said)
    record = record_of(tmp_path / "run")
    (line,) = [line for line in "\n".join(said.said).splitlines() if "--budget 40s:" in line]
    assert "teacher" in line
    spent = record["teacher"]["seconds"] + record["resolved"]["training_seconds"]
    assert spent < 40


def test_a_taught_network_says_who_taught_it(taught: Path, photos: Path, trained_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "taught.onnx"
    carnet.load(taught).export(path, max_drop=50)
    document = carnet.load(path).predictor.document  # type: ignore[union-attr]
    assert document["training"]["teacher"]["name"] == f"carnet_n of the run {trained_run.name}"
    assert str(trained_run.parent) not in str(document)
    assert "carnet_n of the run" in (taught / "report.html").read_text()


def test_a_taught_network_is_a_row_of_a_comparison(taught: Path, trained_run: Path, tmp_path: Path) -> None:
    answer = carnet.compare([trained_run, taught], tmp_path / "comparison")
    assert [row["label"] for row in answer.document["models"]] == ["carnet_n", "carnet_n, taught"]
    assert any("--teacher" in note for note in answer.document["notes"])


def test_a_comparison_does_not_mix_other_images_without_labels(
    photos: Path, trained_run: Path, unlabeled: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    shutil.copytree(unlabeled, more)
    flags = ["--teacher", str(trained_run), "--unlabeled", str(more), "--image-size", "48", "--epochs", "1"]
    command = ["compare", str(photos), "--models", "carnet_n", "--seeds", "2", "--output", str(tmp_path / "compared")]
    assert run([*command, *flags]) == 0
    assert run([*command, *flags]) == 0
    save_picture(more / "new.jpg", (90, 90, 90), seed=4)
    assert run([*command, *flags]) == 2
    assert run([*command, *flags[:2], *flags[4:]]) == 2


def test_a_run_is_not_written_among_its_images(unlabeled: Path, photos: Path, trained_run: Path) -> None:
    command = ["train", str(photos), "--teacher", str(trained_run), "--unlabeled", str(unlabeled)]
    assert run([*command, "--output", str(unlabeled / "runs" / "one")]) == 2


def test_images_without_labels_may_move(
    photos: Path, trained_run: Path, unlabeled: Path, taught: Path, tmp_path: Path
) -> None:
    path, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    shutil.copytree(unlabeled, first)
    stop_in_the_first_epoch(photos, path, teacher=str(trained_run), unlabeled=str(first))
    first.rename(second)
    with pytest.raises(DataError):
        train(resume=path)
    assert run(["train", "--resume", str(path), "--unlabeled", str(second)]) == 0
    assert same_weights(path, taught)


def test_a_folder_beside_the_classes_may_hold_images_without_labels(
    flat: Path, unlabeled: Path, trained_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(unlabeled, flat / "unsorted")
    path = tmp_path / "run"
    result = train(flat, small(teacher=str(trained_run), unlabeled=str(flat / "unsorted")), output=path)
    assert result.report.classes == ("blue", "green", "red")
    assert result.document["num_images"]["unlabeled"] == 14
    assert run(["evaluate", str(path)]) == 0
    assert carnet.load(path).evaluate(split="all").num_images == 30
    flat.rename(tmp_path / "moved")
    assert carnet.load(path).evaluate(tmp_path / "moved", split="all").num_images == 30


def test_data_and_images_without_labels_inside_may_move_together(
    flat: Path, unlabeled: Path, trained_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(unlabeled, flat / "unsorted")
    stop_in_the_first_epoch(flat, tmp_path / "run", teacher=str(trained_run), unlabeled=str(flat / "unsorted"))
    flat.rename(tmp_path / "moved")
    assert run(["train", str(tmp_path / "moved"), "--resume", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_images"]["unlabeled"] == 14


def test_an_ignored_image_without_label_stays_out_where_its_folder_moves(
    photos: Path, trained_run: Path, unlabeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    shutil.copytree(unlabeled, first)
    asked = small(teacher=str(trained_run), unlabeled=str(first))
    with pytest.raises(StoppedError):
        train(photos, asked, output=path, ignore=[str(first / "day 1" / "1-1.jpg")], progress=StopAt("epoch 1/2", 2))
    first.rename(second)
    assert run(["train", "--resume", str(path), "--unlabeled", str(second)]) == 0
    assert json.loads((path / "result.json").read_text())["num_images"]["unlabeled"] == 11
    capsys.readouterr()
    assert run(["evaluate", str(path)]) == 0
    assert "ignore list" not in capsys.readouterr().err


@pytest.mark.parametrize("model", ["carnet18", "timm/mobilenetv3_small_050"])
def test_any_network_may_be_a_student(model: str, photos: Path, trained_run: Path, tmp_path: Path) -> None:
    if model.startswith("timm/"):
        pytest.importorskip("timm")
    result = train(photos, small(model=model, teacher=str(trained_run), epochs=1), output=tmp_path / "run")
    assert result.document["teacher"] == f"carnet_n of the run {trained_run.name}"
