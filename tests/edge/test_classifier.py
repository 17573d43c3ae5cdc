"""The edge classifier predicts as the bench does, without PyTorch."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from calls import calls_of
from children import finished
from PIL import Image, ImageOps

import carnet
from carnet import Classifier
from carnet.cli.main import run as run_command
from carnet.errors import ConfigError, ImageError, ModelFileError
from carnet.explanation import draw_heat
from carnet.metrics import softmax
from carnet.preprocess import load_image
from carnet.spec import ModelSpec


@pytest.fixture(scope="module")
def classifier(exported: Path) -> Classifier:
    return Classifier(exported)


def test_it_predicts_as_the_bench_does(classifier: Classifier, trained_run: Path, photos: Path) -> None:
    bench = carnet.load(trained_run).predictor
    images = np.stack([load_image(path, bench.spec) for path in sorted(photos.glob("*/*/*.jpg"))])
    np.testing.assert_allclose(classifier.logits(images), bench.logits(images), atol=1e-4)
    cooled = bench.logits(images) / classifier.document["temperature"]
    np.testing.assert_allclose(classifier.probabilities(images), softmax(cooled), atol=1e-5)


def test_sources_of_every_kind_get_the_same_prediction(classifier: Classifier, photos: Path) -> None:
    path = photos / "valid" / "red" / "8.jpg"
    with Image.open(path) as image:
        image.load()
        sources = [path, str(path), path.read_bytes(), image, np.asarray(image)]
        answers = [classifier.predict(source) for source in sources]
    assert len(set(answers)) == 1
    assert list(answers[0].probabilities) == sorted(answers[0].probabilities, reverse=True)
    assert sum(answers[0].probabilities) == pytest.approx(1, abs=1e-5)
    assert len(classifier.predict(path, top_k=1).classes) == 1


def test_many_images_in_order_with_bad_ones_in_their_place(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    paths = sorted(photos.glob("valid/*/*.jpg"))
    sources = [*paths[:5], bad, *paths[5:]]
    for batch_size in (1, 4, 100):
        answers = list(classifier.predict_many(iter(sources), batch_size))
        assert len(answers) == len(sources)
        assert isinstance(answers[5], ImageError)
        for source, answer in zip(sources, answers):
            if source != bad:
                assert not isinstance(answer, ImageError)
                assert answer.label == classifier.predict(source).label
    assert list(classifier.predict_many([])) == []
    assert [type(answer) for answer in classifier.predict_many([bad])] == [ImageError]


def test_it_takes_from_a_stream_as_it_goes(classifier: Classifier, photos: Path) -> None:
    path, taken = photos / "valid" / "red" / "8.jpg", 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield path

    answers = classifier.predict_many(endless(), batch_size=2)  # type: ignore[arg-type]
    assert next(answers) is not None
    assert taken <= 2 * 4
    answers.close()  # type: ignore[attr-defined]


def test_bad_arguments(classifier: Classifier, exported: Path) -> None:
    with pytest.raises(ConfigError, match=r"--top-k.*0"):
        classifier.predict(b"", top_k=0)
    with pytest.raises(ConfigError, match=r"--top-k.*0"):
        classifier.explain(b"", top_k=0)
    with pytest.raises(ConfigError, match=r"--batch-size.*0"):
        classifier.predict_many([], batch_size=0)
    with pytest.raises(ConfigError, match=r"--threads.*-1"):
        Classifier(exported, threads=-1)
    with pytest.raises(ConfigError, match=r"--runtime.*onnxruntime, openvino.*tflite"):
        Classifier(exported, runtime="tflite")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'pink'.*blue, green, red"):
        classifier.explain(b"", label="pink")


def test_several_threads_at_once(classifier: Classifier, photos: Path) -> None:
    paths = sorted(photos.glob("*/*/*.jpg")) * 4
    alone = [classifier.predict(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(classifier.predict, paths)) == alone


def test_below_the_threshold_it_is_not_confident(exported: Path, photos: Path) -> None:
    classifier, path = Classifier(exported), photos / "valid" / "red" / "8.jpg"
    classifier.threshold = 1.1
    not_confident = classifier.predict(path)
    classifier.threshold = 0.0
    confident = classifier.predict(path)
    assert (not_confident.is_confident, confident.is_confident) == (False, True)
    assert not_confident.probabilities == confident.probabilities
    assert str(not_confident) != str(confident)


def test_class_maps_make_the_logits(classifier: Classifier, trained_run: Path, photos: Path) -> None:
    bench = carnet.load(trained_run).predictor
    bias = bench.network.get_submodule("linear").bias.detach().numpy()  # type: ignore[union-attr]
    path = photos / "valid" / "blue" / "8.jpg"
    logits = classifier.logits(load_image(path, classifier.spec)[None])[0]
    centred = logits - bias
    for number, label in enumerate(classifier.classes):
        explained = classifier.explain(path, label)
        # Less what all classes have in common.
        assert explained.class_map.mean() == pytest.approx(centred[number] - centred.mean(), abs=1e-4)
        assert explained.label == label
    best = classifier.explain(path)
    assert best.label == best.prediction.label == classifier.predict(path).label
    assert best.picture.size == (448, 448)


def test_explaining_decodes_once_and_infers_once(exported: Path, photos: Path, tmp_path: Path) -> None:
    path = photos / "valid" / "red" / "8.jpg"
    classifier, once = Classifier(exported), ["open", "Session.run"]
    with calls_of(Image.open, onnxruntime.InferenceSession.run) as done:
        explained = classifier.explain(path, top_k=2)
    assert done == once
    assert explained.prediction == classifier.predict(path, top_k=2)
    with calls_of(Image.open, onnxruntime.InferenceSession.run) as done:
        assert run_command(["predict", str(exported), str(path), "--explain", str(tmp_path)]) == 0
    assert done == once
    assert [file.name for file in tmp_path.iterdir()] == ["8.heat.png"]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_heat_lies_over_what_the_model_sees(channels: int, mode: str) -> None:
    spec = replace(SPEC, in_channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    image = Image.new("RGB", (64, 64), (200, 30, 30)).convert(mode)
    if mode == "RGBA":
        image.putalpha(0)
    picture = np.asarray(draw_heat(image, -np.ones((1, 1), np.float32), ([31.5], [31.5]), spec))
    # Transparent parts are white.
    expected = 255 if mode == "RGBA" else ImageOps.grayscale(image).getpixel((0, 0))
    assert (picture == expected).all()


def test_nothing_but_the_base_installation_is_needed(exported: Path, photos: Path) -> None:
    """In a Python that has only what the base installation brings."""
    photo = photos / "valid" / "red" / "8.jpg"
    script = f"""
import sys
ALLOWED = {{"carnet", "numpy", "PIL", "onnxruntime", "tyro", "flatbuffers", "google", "packaging", "platformdirs",
           "typing_extensions", "docstring_parser", "typeguard", "coloredlogs", "humanfriendly", "sympy", "mpmath",
           "ml_dtypes", "jinja2", "markupsafe"}}
class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nothing())
import carnet
from carnet.cli.main import run
answer = carnet.Classifier({str(exported)!r}).predict({str(photo)!r})
assert run(["predict", {str(exported)!r}, {str(photo)!r}, "--explain", {str(exported.parent / "heat")!r}]) == 0
assert run(["verify", {str(exported)!r}]) == 0
assert run(["evaluate", {str(exported)!r}, {str(photos)!r}, "--output", {str(exported.parent / "base.html")!r}]) == 0
assert "torch" not in sys.modules
try:
    import torch
except ModuleNotFoundError:
    print("there is no torch here")
"""
    done = finished([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("there is no torch here\n")


def test_a_thousand_mutated_images_neither_crash_nor_grow(exported: Path) -> None:
    """In a process of its own: a crash would take the tests with it, and their memory says nothing."""
    script = Path(__file__).with_name("mutated_images.py")
    done = finished([sys.executable, "-W", "error", script, exported])
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["answered"] + found["refused"] == 1000
    assert min(found["answered"], found["refused"]) > 50
    assert found["growth_bytes"] < 64 * 2**20


def test_odd_images(classifier: Classifier, tmp_path: Path) -> None:
    for size in ((1, 1), (1, 10_000), (10_000, 1)):
        assert classifier.predict(Image.new("RGB", size, "red")).probabilities
    wide = tmp_path / "wide.png"
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(wide)
    assert classifier.predict(wide).probabilities
    with pytest.raises(ImageError, match=r"missing.jpg"):
        classifier.predict(tmp_path / "missing.jpg")
    with pytest.raises(ImageError):
        classifier.predict(b"")


def test_a_model_without_maps_is_an_error(exported: Path) -> None:
    classifier = Classifier(exported)
    classifier.document = {**classifier.document, "map_centres": None}
    with pytest.raises(ModelFileError, match=re.escape(str(exported))):
        classifier.explain(Image.new("RGB", (50, 50)))


SPEC = ModelSpec(model="carnet_s", classes=("a", "b"), image_size=64)


def redness(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture, np.float32)
    return pixels[:, :, 0] - pixels[:, :, 2]


def test_the_hottest_place_is_the_given_centre() -> None:
    class_map = np.zeros((3, 3), np.float32)
    class_map[1, 1] = 2.0
    centres = ([10.0, 30.0, 50.0], [12.0, 36.0, 52.0])
    red = redness(draw_heat(Image.new("RGB", (64, 64), "grey"), class_map, centres, SPEC))
    row, column = np.unravel_index(red.argmax(), red.shape)
    scale = 64 / red.shape[0]
    assert (row + 0.5) * scale - 0.5 == pytest.approx(30, abs=1)
    assert (column + 0.5) * scale - 0.5 == pytest.approx(36, abs=1)
    assert red[-1, 0] == 0


def test_where_the_network_does_not_look_there_is_no_heat() -> None:
    centres = ([28.0, 32.0, 36.0],) * 2
    red = redness(draw_heat(Image.new("RGB", (64, 64), "grey"), np.ones((3, 3), np.float32), centres, SPEC))
    side = red.shape[0]
    assert red[side // 2, side // 2] > 50
    for row, column in ((0, 0), (0, side // 2), (side // 2, side - 1), (side // 4, side // 4)):
        assert red[row, column] == 0


@pytest.mark.parametrize("rule", ["crop", "pad", "stretch"])
def test_evidence_against_a_class_is_not_drawn(rule: str) -> None:
    spec = ModelSpec(model="carnet_s", classes=("a", "b"), image_size=64, resize=rule)  # type: ignore[arg-type]
    picture = draw_heat(Image.new("RGB", (120, 80), "teal"), -np.ones((1, 1), np.float32), ([31.5], [31.5]), spec)
    assert (redness(picture) == 0).all()
