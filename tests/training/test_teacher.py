"""Teachers: who may be one, and what it answers."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS
from pictures import save_picture
from runs import resolved, small
from teaching import scanned, taught_by

import carnet
from carnet.cli.main import run
from carnet.data.find import find_images
from carnet.errors import ConfigError
from carnet.metrics import softmax
from carnet.models.weights import load
from carnet.preprocess import load_image
from carnet.text import Silent
from carnet.training.distillation import ask_teacher
from carnet.training.features import Photo
from carnet.training.head import Choice, _path, fit_fold_heads, fit_head
from carnet.training.scanning import DataScan
from carnet.training.schedule import View
from carnet.training.teacher import open_teacher


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
        (["--teacher", ""], "--teacher"),
        (["--teacher", "~nobody-here/run"], "nobody-here"),
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
    assert run(["train", str(photos), *flags, "--output", str(tmp_path / "run")]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert named in line
    assert not any("Traceback" in one for one in before)
    assert not (tmp_path / "run").exists()


def test_an_exported_file_for_other_classes_is_refused(flat: Path, exported: Path, tmp_path: Path) -> None:
    (flat / "red").rename(flat / "scarlet")
    assert run(["train", str(flat), "--teacher", str(exported), "--output", str(tmp_path / "run")]) == 2


def predicted(model: carnet.Model, path: Path) -> np.ndarray:
    """The probabilities in the order of the classes."""
    prediction = model.predict(path)
    return np.array(
        [dict(zip(prediction.classes, prediction.probabilities, strict=True))[one] for one in model.classes]
    )


def test_an_exported_file_answers_as_it_predicts(photos: Path, exported: Path) -> None:
    taught = taught_by(exported, photos)
    model, place = carnet.load(exported), 10
    path = find_images(photos).splits["train"][place].path
    # The image is answered for as it is and mirrored.
    assert np.abs(softmax(taught.answers.scores[:1, place])[0] - predicted(model, path)).max() < 0.1
    assert (taught.record["head"], taught.record["num_crops"]) == (None, 8)
    assert any("which images" in note for note in taught.notes)


def test_a_teacher_does_not_answer_from_memory(tmp_path: Path) -> None:
    """A head that is fitted to a wrong label repeats it; the teacher's answer comes from heads that never saw it."""
    rng = np.random.default_rng(0)
    views = [np.abs(rng.normal(size=(40, 64))).astype(np.float16)]
    views[0][20:, :8] += 3
    labels = np.repeat([0, 1], 20)
    labels[3] = 1
    digests = [f"{number:064x}" for number in range(40)]
    head = replace(fit_head(views, labels, digests, 2), penalty=1e-5)
    remembers = fit_head_with(views, labels, head.penalty)
    assert remembers[3].argmax() == 1
    without = fit_fold_heads(views, labels, digests, Choice(head.penalty, head.temperature, 0.0), 2)
    assert without.scores(views[0])[3].argmax() == 0
    assert (without.scores(views[0]).argmax(1) == labels).mean() > 0.9


def fit_head_with(views: list[np.ndarray], labels: np.ndarray, penalty: float) -> np.ndarray:
    """The scores of images by a head that was fitted to all of them."""
    weight = _path([view.astype(np.float32) for view in views], labels, 2, [penalty])[penalty].numpy()
    return np.asarray(views[0].astype(np.float32) @ weight.T)


def test_labelled_images_that_trained_the_teacher_are_answered_by_other_heads(
    photos: Path, trained_run: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    shutil.copytree(photos, half)
    for number, path in enumerate(sorted((half / "train").glob("*/[0-3].jpg"))):
        save_picture(path, COLOURS[path.parent.name], seed=7000 + number)
    taught = taught_by(trained_run, half)
    # Heads are fitted to all labelled images, so that they know every class.
    assert taught.record["head"]["num_fitted"] == 24
    images = scanned(half).data.splits["train"]
    model = load(trained_run)
    scores = model.logits(np.stack([load_image(sample.path, model.spec) for sample in images]))
    mirrored = model.logits(np.stack([load_image(sample.path, model.spec)[:, ::-1] for sample in images]).copy())
    own = np.abs(taught.answers.scores[0] - (scores + mirrored) / 2).max(1) < 0.05
    assert own.tolist() == [sample.path.stem in "0123" for sample in images]


def test_valid_images_that_trained_the_teacher_are_said(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(photos, mixed)
    (mixed / "valid" / "red" / "8.jpg").write_bytes((photos / "train" / "red" / "0.jpg").read_bytes())
    (note,) = taught_by(trained_run, mixed).notes
    assert "1 image of valid" in note


def test_a_run_without_its_list_of_images_may_have_seen_them_all(
    photos: Path, trained_run: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(trained_run, teacher)
    (teacher / "data.csv").unlink()
    assert taught_by(teacher, photos).record["head"]["num_fitted"] == 24


def test_little_memory_takes_fewer_views_or_is_refused(photos: Path, trained_run: Path) -> None:
    assert taught_by(trained_run, photos, max_memory="1GB").record["num_views"] == 10
    # Fewer than four crops are not worth showing.
    few = taught_by(trained_run, photos, max_memory="300KB").record
    assert (few["num_views"], few["num_crops"]) == (2, 0)
    with pytest.raises(ConfigError):
        taught_by(trained_run, photos, max_memory="50KB")


def test_a_budget_that_is_used_up_is_refused(photos: Path, trained_run: Path) -> None:
    config = resolved(small(teacher=str(trained_run), budget="1m"), num_train=24, min_crop=0.25)

    class Untouched(Silent):
        def bar(self, what: str, done: int, total: int, note: str = "") -> None:
            raise AssertionError("the teacher has begun")

    with pytest.raises(ConfigError, match="--budget 1m"):
        ask_teacher(scanned(photos), config, progress=Untouched(), started=time.monotonic() - 61)


def test_uncropped_images_need_no_crops(photos: Path, trained_run: Path) -> None:
    config = resolved(small(teacher=str(trained_run)), num_train=24, min_crop=1.0)
    assert ask_teacher(scanned(photos), config, progress=Silent()).answers.num_crops == 0


def test_teacher_and_student_see_the_same_crops(photos: Path, trained_run: Path) -> None:
    images = scanned(photos)
    config = resolved(small(teacher=str(trained_run), flip=0.0, brightness=0.0), num_train=24, min_crop=0.25)
    taught = ask_teacher(images, config, progress=Silent())
    spec = carnet.load(trained_run).spec
    pipeline = DataScan(images, 48).pipeline(config, spec, taught.answers)
    extractor = open_teacher(config, images.data.classes, threads=1).extractor
    (first, *_), epoch = pipeline.load_step(3, 0), 3
    batch = pipeline.changed([first], epoch, View(48, 0.25))
    path = images.data.splits["train"][first.place].path
    photo = Photo(images.facts[path].sha256, lambda: first.pixels)
    view = 2 + (first.place + epoch) % 8
    (expected,) = extractor._views(photo, [view])
    assert np.array_equal(batch.images[0].numpy(), expected)
    (features,) = extractor.features([photo], [view])
    assert np.allclose(features, extractor.compute(expected[None]), atol=1e-2)


def test_features_are_those_of_whole_images_centred_and_of_length_one(photos: Path, trained_run: Path) -> None:
    images, answers = scanned(photos), taught_by(trained_run, photos).answers
    config = resolved(small(teacher=str(trained_run)), num_train=24, min_crop=0.25)
    extractor = open_teacher(config, images.data.classes, threads=1).extractor
    pixels = np.stack([load_image(sample.path, extractor.spec) for sample in images.data.splits["train"]])
    rows = extractor.compute(pixels) + extractor.compute(np.ascontiguousarray(pixels[:, :, ::-1]))
    rows -= rows.mean(0)
    assert np.allclose(answers.features, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-2)


def test_new_images_are_answered_for_by_the_run_itself(flat: Path, trained_run: Path) -> None:
    for number, path in enumerate(sorted(flat.glob("*/*.png"))):
        save_picture(path, COLOURS[path.parent.name], seed=5000 + number)
    taught, model = taught_by(trained_run, flat), carnet.load(trained_run)
    assert taught.record["head"] is None
    path = scanned(flat).data.splits["train"][3].path
    assert np.abs(softmax(taught.answers.scores[:1, 3])[0] - predicted(model, path)).max() < 0.1
