"""Runs that learn from a teacher's answers, and from images without labels that it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import COLOURS
from pictures import save_picture
from runs import Listening, StopAt, metrics, resolved, same_weights, small

import carnet
from carnet.cli.main import run
from carnet.data.find import find_images, find_unlabeled
from carnet.data.scan import scan_images
from carnet.errors import RunError, StoppedError
from carnet.run_folder import RunFolder
from carnet.text import Silent
from carnet.training.answers import Answers
from carnet.training.pipeline import Batch, cut_mix
from carnet.training.run import train
from carnet.training.step import cross_entropy
from carnet.training.teacher import answers_for


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Twelve new pictures in two folders; one of them twice, one is in valid and one in train."""
    root = tmp_path_factory.mktemp("unlabeled") / "more"
    for k, colour in enumerate(COLOURS.values()):
        for i in range(4):
            save_picture(root / f"day {i % 2}" / f"{k}-{i}.jpg", colour, seed=1000 + 100 * k + i)
    shutil.copy(root / "day 0" / "0-0.jpg", root / "again.jpg")
    shutil.copy(photos / "valid" / "red" / "9.jpg", root / "held-out.jpg")
    shutil.copy(photos / "train" / "blue" / "2.jpg", root / "known.jpg")
    return root


@pytest.fixture(scope="module")
def taught(photos: Path, trained_run: Path, unlabeled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("taught") / "run"
    train(photos, small(teacher=str(trained_run), unlabeled=str(unlabeled)), output=path)
    return path


def record_of(path: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((path / "config.json").read_text())  # type: ignore[no-any-return]


def test_images_without_labels_are_trained_on_and_never_evaluated(taught: Path) -> None:
    result, rows = json.loads((taught / "result.json").read_text()), RunFolder(taught).images()
    assert result["num_images"] == {"train": 24, "valid": 12, "unlabeled": 12}
    assert result["valid"]["num_images"] == 12
    assert sum(row["split"] == "unlabeled" for row in rows) == 12
    assert {row["label"] for row in rows if row["split"] == "unlabeled"} == {""}
    # 36 images in batches of 8, the last of which takes 4.
    assert record_of(taught)["resolved"]["num_steps"] == 2 * 5


def test_images_without_labels_that_have_one_are_left_out_and_said(photos: Path, unlabeled: Path) -> None:
    scanned = scan_images(find_images(photos), image_size=48, unlabeled=find_unlabeled(unlabeled))
    assert scanned.num_unlabeled == 12
    text = " ".join(scanned.warnings)
    for name, split in (("held-out.jpg", "valid"), ("known.jpg", "train"), ("again.jpg", "among them")):
        assert any(name in warning or name == "again.jpg" for warning in scanned.warnings if split in warning), text


def test_images_without_labels_decide_what_the_data_is(photos: Path, unlabeled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(unlabeled, copy)

    def content_hash(folder: Path | None) -> str:
        more = None if folder is None else find_unlabeled(folder)
        return scan_images(find_images(photos), image_size=48, unlabeled=more).content_hash

    assert content_hash(copy) == content_hash(unlabeled) != content_hash(None)
    (copy / "day 1" / "2-3.jpg").unlink()
    assert content_hash(copy) != content_hash(unlabeled)


def test_a_damaged_image_without_label_is_named_or_skipped(photos: Path, tmp_path: Path, trained_run: Path) -> None:
    more = tmp_path / "more"
    save_picture(more / "good.jpg", (1, 2, 3), seed=77)
    (more / "bad.jpg").write_bytes((more / "good.jpg").read_bytes()[:50])
    flags = ["--teacher", str(trained_run), "--unlabeled", str(more), "--model", "carnet_n", "--image-size", "48"]
    command = ["train", str(photos), *flags, "--epochs", "1", "--output", str(tmp_path / "run")]
    assert run(command) == 2
    assert run([*command, "--skip-unreadable"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_skipped_unreadable"] == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--unlabeled", "{photos}"], "--teacher"),
        (["--teacher", "nowhere"], "nowhere"),
        (["--teacher", "{photos}"], "photos"),
        (["--teacher", "{photos}/train/red/0.jpg"], "0.jpg"),
        (["--teacher", "{run}", "--unlabeled", "nowhere"], "nowhere"),
        (["--teacher", "{run}", "--unlabeled", "{photos}/valid"], "--unlabeled"),
        (["--teacher", "{run}", "--unlabeled", "{empty}"], "--unlabeled"),
        (["--teacher", "{run}", "--stream"], "--stream"),
        (["--teacher", "{run}", "--model", "efficientnet_lite0", "--freeze"], "--teacher"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_contradicts_a_teacher_is_one_line(
    flags: list[str], named: str, photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"photos": str(photos), "run": str(trained_run), "empty": str(tmp_path / "empty")}
    flags = [flag.format(**names) for flag in flags]
    capsys.readouterr()
    assert run(["train", str(photos), "--epochs", "1", *flags, "--output", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("carnet: ") or "error" in line.lower() or named in line
    assert named in line
    assert not (tmp_path / "run").exists()


def test_an_exported_file_for_other_classes_is_refused(flat: Path, exported: Path, tmp_path: Path) -> None:
    (flat / "red").rename(flat / "scarlet")
    assert run(["train", str(flat), "--teacher", str(exported), "--output", str(tmp_path / "run")]) == 2


def answers_of(teacher: Path | str, photos: Path) -> tuple[Answers, dict]:  # type: ignore[type-arg]
    config = resolved(small(teacher=str(teacher)), num_train=24, min_crop=0.25)
    return answers_for(scan_images(find_images(photos), image_size=48), config, progress=Silent())


def predicted(model: carnet.Model, path: Path) -> np.ndarray:
    """The probabilities in the order of the classes."""
    prediction = model.predict(path)
    return np.array(
        [dict(zip(prediction.classes, prediction.probabilities, strict=True))[one] for one in model.classes]
    )


def test_an_exported_file_answers_as_it_predicts(photos: Path, exported: Path) -> None:
    answers, record = answers_of(exported, photos)
    model, place = carnet.load(exported), 10
    path = find_images(photos).splits["train"][place].path
    _, shares = answers.for_image(place, 0, 1.0)
    # The image is answered for as it is and mirrored.
    assert np.abs(shares - predicted(model, path)).max() < 0.1
    assert (record["head"], record["num_crops"]) == (None, 8)
    assert record["saw_images"]


def test_a_run_does_not_answer_from_memory(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    """A label that is wrong is not what a teacher says about that image, although it was trained on it."""
    wrong = tmp_path / "photos"
    shutil.copytree(photos, wrong)
    (wrong / "train" / "red" / "0.jpg").rename(wrong / "train" / "blue" / "wrong.jpg")
    answers, record = answers_of(trained_run, wrong)
    names = [sample.path.name for sample in find_images(wrong).splits["train"]]
    assert record["head"]["num_fitted"] == 24
    assert find_images(wrong).classes[int(answers.scores[0, names.index("wrong.jpg")].argmax())] == "red"


def test_a_run_that_knows_other_classes_gives_its_features(flat: Path, trained_run: Path, tmp_path: Path) -> None:
    (flat / "red").rename(flat / "scarlet")
    result = train(flat, small(teacher=str(trained_run)), output=tmp_path / "run")
    assert record_of(tmp_path / "run")["teacher"]["head"]["num_fitted"] == result.document["num_images"]["train"]


def test_new_images_are_answered_for_by_the_run_itself(flat: Path, trained_run: Path) -> None:
    for number, path in enumerate(sorted(flat.glob("*/*.png"))):
        save_picture(path, COLOURS[path.parent.name], seed=5000 + number)
    config = resolved(small(teacher=str(trained_run)), num_train=24, min_crop=0.25)
    scanned = scan_images(find_images(flat), image_size=48)
    answers, record = answers_for(scanned, config, progress=Silent())
    assert record["head"] is None
    model = carnet.load(trained_run)
    path = scanned.data.splits["train"][3].path
    assert np.abs(answers.for_image(3, 0, 1.0)[1] - predicted(model, path)).max() < 0.1


def test_crops_are_shown_in_turn_and_the_whole_at_the_end() -> None:
    scores = np.arange(3 * 2 * 4).reshape(3, 2, 4).astype(np.float16)
    boxes = np.random.default_rng(0).random((3, 2, 4)).astype(np.float32)
    answers = Answers(scores, boxes, min_crop=0.25)
    seen = [answers.for_image(1, epoch, 0.25)[0] for epoch in range(4)]
    assert seen[0] == seen[2] != seen[1] == seen[3]
    assert set(seen) == {tuple(boxes[view, 1].tolist()) for view in (1, 2)}
    box, shares = answers.for_image(1, 0, 0.9)
    assert box is None
    assert shares.sum() == pytest.approx(1)
    assert Answers.unpack(answers.pack()).min_crop == 0.25


def batch_of(number: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 8, 8, 3), generator=rng, dtype=torch.uint8)
    answers = torch.rand(number, 4, generator=rng).softmax(1)
    return Batch(images, torch.arange(number) % 4, size=8, answers=answers)


def test_answers_replace_labels() -> None:
    batch, logits = batch_of(), torch.randn(6, 4)
    assert batch.answers is not None
    expected = -(batch.answers * F.log_softmax(logits, 1)).sum(1).mean()
    assert torch.allclose(cross_entropy(logits, batch, 0.1), expected)


def test_answers_are_mixed_as_images_are_and_stay_with_them() -> None:
    batch = batch_of()
    mixed = cut_mix(batch, 1.0, np.random.default_rng(1))
    assert batch.answers is not None
    assert mixed.answers is not None
    assert 0 < mixed.label_share < 1
    expected = mixed.label_share * batch.answers + (1 - mixed.label_share) * batch.answers.roll(1, 0)
    assert torch.allclose(mixed.answers, expected)
    parts = list(mixed.parts(3))
    assert torch.equal(torch.cat([part.answers for part in parts if part.answers is not None]), mixed.answers)


@pytest.mark.parametrize("lost", [(), ("last.ckpt", "previous.ckpt"), ("answers.safetensors",)])
def test_a_taught_run_is_resumed_exactly(
    lost: Sequence[str], photos: Path, trained_run: Path, unlabeled: Path, taught: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(
            photos,
            small(teacher=str(trained_run), unlabeled=str(unlabeled)),
            output=path,
            progress=StopAt("epoch 1/2", 2),
        )
    for name in lost:
        (path / name).unlink(missing_ok=True)
    train(resume=path)
    assert same_weights(path, taught)
    assert metrics(path) == metrics(taught)


def test_answers_that_are_gone_with_their_teacher_are_one_line(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    teacher, path = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(trained_run, teacher)
    with pytest.raises(StoppedError):
        train(photos, small(teacher=str(teacher)), output=path, progress=StopAt("epoch 1/2", 2))
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
    asked = small(teacher=str(trained_run), epochs=1, threads=1, cutmix=0.0, precision="fp32")
    train(photos, replace(asked, devices=2), output=tmp_path / "run")
    (row,) = metrics(tmp_path / "run")
    assert record_of(tmp_path / "run")["resolved"]["devices"] == 2
    assert float(row["train_loss"]) < 2


def test_a_budget_says_how_it_is_divided(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    said = Listening()
    train(photos, small(teacher=str(trained_run), epochs=None, budget="40s"), output=tmp_path / "run", progress=said)
    record = record_of(tmp_path / "run")
    assert record["teacher"]["num_views"] >= 1
    assert any("teacher" in line and "40s" in line for line in "\n".join(said.said).splitlines())


def test_a_budget_too_small_for_the_teacher_is_refused(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    command = ["train", str(photos), "--teacher", str(trained_run), "--budget", "1s"]
    assert run([*command, "--output", str(tmp_path / "run")]) == 2


def test_a_taught_network_says_who_taught_it(taught: Path, photos: Path, trained_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "taught.onnx"
    carnet.load(taught).export(path, max_drop=50)
    document = carnet.load(path).predictor.document  # type: ignore[union-attr]
    assert document["training"]["teacher"]["name"] == f"carnet_n of {trained_run}"
    assert "carnet_n of" in (taught / "report.html").read_text()


def test_a_taught_network_is_a_row_of_a_comparison(taught: Path, trained_run: Path, tmp_path: Path) -> None:
    answer = carnet.compare([trained_run, taught], tmp_path / "comparison")
    assert [row["label"] for row in answer.document["models"]] == ["carnet_n", "carnet_n, taught"]
    assert any("--teacher" in note for note in answer.document["notes"])
