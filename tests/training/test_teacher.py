"""Teachers: who may be one, and what it answers."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS
from pictures import save_picture
from runs import resolved, small
from teaching import scanned, taught_by
from torch import nn

import carnet
from carnet.cli.main import run
from carnet.data.find import find_images
from carnet.errors import ConfigError, ModelError
from carnet.metrics import softmax
from carnet.models.registry import Preprocessing
from carnet.models.weights import TrainedModel, load
from carnet.preprocess import load_image
from carnet.text import Silent
from carnet.training.distillation import ask_teacher
from carnet.training.features import Photo
from carnet.training.head import Choice, _path, fit_fold_heads, fit_head
from carnet.training.scanning import DataScan
from carnet.training.schedule import View
from carnet.training.teacher import check_features, open_teacher


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--unlabeled", "{photos}"], "--teacher"),
        (["--teacher", "nowhere"], "nowhere"),
        (["--teacher", "{photos}"], "photos"),
        (["--teacher", "{photos}/train/red/0.jpg"], "0.jpg"),
        (["--teacher", "{unfinished}"], "--resume"),
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
    shutil.copytree(trained_run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    names = {name: str(tmp_path / name) for name in ("empty", "unfinished")}
    flags = [flag.format(photos=photos, run=trained_run, **names) for flag in flags]
    capsys.readouterr()
    assert run(["train", str(photos), *flags, "--output", str(tmp_path / "run")]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert named in line
    assert not any("Traceback" in one for one in before)
    assert not (tmp_path / "run").exists()


def test_a_path_may_name_it(photos: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        carnet.train(photos, teacher=Path("nowhere"))


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


def test_unlabelled_images_that_trained_the_teacher_are_answered_by_a_head(
    photos: Path, trained_run: Path, tmp_path: Path
) -> None:
    """The head is fitted to the labelled images alone, where the teacher would repeat labels that it was given."""
    few, more = tmp_path / "few", tmp_path / "more"
    shutil.copytree(photos, few)
    for path in (few / "train").glob("*/[4-7].jpg"):
        path.rename(path.with_name(f"{path.parent.name}-{path.name}"))
    for path in (few / "train").glob("*/*-[4-7].jpg"):
        more.mkdir(exist_ok=True)
        path.rename(more / path.name)
    save_picture(more / "new.jpg", (90, 90, 90), seed=8000)
    taught = taught_by(trained_run, few, more)
    assert taught.record["head"]["num_fitted"] == 12
    images = scanned(few, more)
    assert images.unlabeled is not None
    model = load(trained_run)
    pixels = np.stack([load_image(path, model.spec) for path in images.unlabeled.paths])
    scores = (model.logits(pixels) + model.logits(np.ascontiguousarray(pixels[:, :, ::-1]))) / 2
    own = np.abs(taught.answers.scores[0, 12:] - scores).max(1) < 0.05
    assert own.tolist() == [path.name == "new.jpg" for path in images.unlabeled.paths]
    assert any("12 images without label" in note for note in taught.notes)


def test_a_class_of_one_image_is_not_unlearned(photos: Path, trained_run: Path, tmp_path: Path) -> None:
    """Heads that were fitted without the image do not know its class."""
    few = tmp_path / "few"
    shutil.copytree(photos, few)
    for path in (few / "train" / "red").glob("[1-9]*.jpg"):
        path.unlink()
    taught = taught_by(trained_run, few)
    (place,) = (place for place, one in enumerate(scanned(few).data.splits["train"]) if one.path.parent.name == "red")
    assert taught.answers.labels(0)[place] == scanned(few).data.classes.index("red")
    assert any("1 training image" in note and "class" in note for note in taught.notes)


def test_near_copies_are_answered_for_by_the_same_head(photos: Path, trained_run: Path) -> None:
    """If all images of a class are near copies, no head can be fitted to the class without them."""
    images = scanned(photos)
    red = [images.facts[one.path].sha256 for one in images.data.splits["train"] if one.path.parent.name == "red"]
    near = {digest: frozenset(red) - {digest} for digest in red}
    config = resolved(small(teacher=str(trained_run)), num_train=24, min_crop=0.25)
    notes = [ask_teacher(replace(images, near=one), config, progress=Silent()).notes for one in (None, near)]
    assert not notes[0]
    assert "8 training images" in notes[1][0]


def test_a_run_without_features_of_whole_images_is_named() -> None:
    class Pixels(nn.Module):
        """A linear layer for each pixel."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.linear(x.movedim(1, -1))
            return scores.mean((1, 2))

    spec = Preprocessing().spec(model="carnet_n", classes=("a", "b"), image_size=32)
    for flag, way_out in (("--teacher", "name the file"), ("--model", "name another run$")):
        with pytest.raises(ModelError, match=rf"{flag} runs.*{way_out}"):
            check_features(TrainedModel(Pixels(), spec), Path("runs/pixels"), flag)


def test_little_memory_takes_fewer_views_or_is_refused(photos: Path, trained_run: Path) -> None:
    assert taught_by(trained_run, photos).record["num_views"] == 10
    # Fewer than four crops are not worth showing.
    few = taught_by(trained_run, photos, left_bytes=2_000_000).record
    assert (few["num_views"], few["num_crops"]) == (2, 0)
    with pytest.raises(ConfigError):
        taught_by(trained_run, photos, left_bytes=50_000)


def test_a_limit_of_memory_is_that_of_the_process(photos: Path, trained_run: Path) -> None:
    """PyTorch alone takes more than this."""
    with pytest.raises(ConfigError, match="memory"):
        taught_by(trained_run, photos, max_memory="20MB")


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
