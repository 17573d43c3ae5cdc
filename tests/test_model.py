"""The model object does the same for a run and for an exported file."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from children import finished

import carnet
from carnet.errors import ConfigError, ImageError, RunError

QUICK = {"model": "carnet_n", "image_size": 32, "epochs": 2, "batch_size": 8, "device": "cpu"}


@pytest.fixture(params=["run", "file"])
def model(request: pytest.FixtureRequest, trained_run: Path, exported: Path) -> carnet.Model:
    return carnet.load(trained_run if request.param == "run" else exported)


@pytest.fixture
def image(photos: Path) -> Path:
    return photos / "valid" / "red" / "9.jpg"


def test_both_kinds_predict(model: carnet.Model, image: Path) -> None:
    answer = model.predict(image, top_k=2)
    assert answer.classes[0] == answer.label
    assert len(answer.classes) == 2
    assert set(answer.classes) <= set(model.classes)
    assert (answer.is_confident is None) == (model.threshold is None) == (model.kind == "run")


def test_both_kinds_predict_many_and_go_on_after_a_broken_image(model: carnet.Model, image: Path) -> None:
    first, broken, last = model.predict_many([image, b"no image", image], batch_size=2, top_k=1)
    assert isinstance(broken, ImageError)
    assert isinstance(first, carnet.Prediction)
    assert isinstance(last, carnet.Prediction)
    assert first.label == last.label == model.predict(image).label
    assert first.probability == pytest.approx(last.probability, abs=1e-6)


def test_both_kinds_explain_alike(trained_run: Path, exported: Path, image: Path) -> None:
    run, file = (carnet.load(path).explain(image, "red") for path in (trained_run, exported))
    assert run.label == file.label == "red"
    assert run.class_map == pytest.approx(file.class_map, abs=1e-3)
    assert run.prediction.label == file.prediction.label
    difference = np.asarray(run.figure, float) - np.asarray(file.figure, float)
    assert np.abs(difference).max() <= 2


def test_both_kinds_evaluate(model: carnet.Model, photos: Path) -> None:
    report = model.evaluate(photos)
    assert report.num_images == 12
    assert report.leaks_known == (model.kind == "run")


def test_a_run_knows_its_data_and_an_exported_file_does_not(trained_run: Path, exported: Path) -> None:
    assert carnet.load(trained_run).evaluate().num_images == 12
    with pytest.raises(ConfigError, match=exported.name):
        carnet.load(exported).evaluate()


def test_a_run_is_exported_and_an_exported_file_is_not_exported_again(trained_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    result = carnet.load(trained_run).export(target)
    assert result.path == target
    assert carnet.load(result).kind == "file"
    with pytest.raises(ConfigError, match=target.name):
        carnet.load(target).export(tmp_path / "again.onnx")


def test_train_returns_a_model_and_takes_settings_as_keywords(photos: Path, tmp_path: Path, image: Path) -> None:
    model = carnet.train(photos, output=tmp_path / "run", **QUICK)
    assert model.path == tmp_path / "run"
    assert len(model.result.history) == 2
    for name in ("report", "history", "document", "top1"):
        with pytest.warns(DeprecationWarning, match=f"model.result.{name}"):
            assert getattr(model, name) == getattr(model.result, name)
    assert model.spec.image_size == 32
    assert model.predict(image).label == carnet.load(tmp_path / "run").predict(image).label


def test_keywords_change_the_config_that_is_given(photos: Path, tmp_path: Path) -> None:
    config = carnet.TrainingConfig(**QUICK)
    model = carnet.train(photos, config, output=tmp_path / "run", epochs=1)
    assert len(model.result.history) == 1


def test_an_unknown_setting_names_the_nearest(photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"'epoch'.* epochs"):
        carnet.train(photos, epoch=3)


@pytest.mark.parametrize("options", [{"threads": 2}, {"runtime": "openvino"}])
def test_options_of_an_exported_file_are_refused_for_a_run(trained_run: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(options))}"):
        carnet.load(trained_run, **options)  # type: ignore[arg-type]


def test_a_device_is_refused_for_an_exported_file(exported: Path) -> None:
    with pytest.raises(ConfigError, match="--device cuda"):
        carnet.load(exported, device="cuda")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=tmp_path.name):
        carnet.load(tmp_path)


@pytest.mark.parametrize("name", ["logits", "probabilities"])
def test_an_attribute_of_version_0_1_is_given_with_a_warning(model: carnet.Model, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"model.predictor.{name}"):
        assert getattr(model, name) == getattr(model.predictor, name)


def test_an_attribute_that_never_was_is_an_error(model: carnet.Model) -> None:
    with pytest.raises(AttributeError, match="predcit"):
        model.predcit  # type: ignore[attr-defined]  # noqa: B018


def test_a_loaded_model_says_where_its_result_is(model: carnet.Model) -> None:
    with pytest.raises(RunError, match=r"result\.json"):
        model.result  # noqa: B018


def test_several_images_are_for_predict_many(model: carnet.Model, image: Path) -> None:
    with pytest.raises(ConfigError, match="predict_many"):
        model.predict([image, image])  # type: ignore[arg-type]


def test_bytes_are_a_model_file(exported: Path, image: Path) -> None:
    model = carnet.load(exported.read_bytes())
    assert model.path is None
    assert model.predict(image) == carnet.load(exported).predict(image)


def test_a_relative_path_survives_another_working_directory(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_run.parent)
    model = carnet.load(trained_run.name)
    monkeypatch.chdir(tmp_path)
    assert model.evaluate().num_images == 12


def test_a_model_moves_to_another_process(model: carnet.Model, image: Path) -> None:
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(image).label == model.predict(image).label


def test_an_exported_file_needs_no_torch(exported: Path, image: Path, tmp_path: Path) -> None:
    shutil.copy(exported, tmp_path / "model.onnx")
    script = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'lightning_fabric', 'onnx', 'onnxscript', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import carnet\n"
        "model = carnet.load('model.onnx')\n"
        f"print(model.predict({str(image)!r}).label, model.explain({str(image)!r}).label)\n"
        "assert carnet.verify('model.onnx').passed\n"
        f"assert model.evaluate({str(image.parents[2])!r}).num_images == 12\n"
        "try:\n"
        "    carnet.load('.')\n"
        "except carnet.CarnetError as error:\n"
        "    assert 'carnet[train]' in str(error), error\n"
    )
    done = finished([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert done.stdout.split()[0] in carnet.load(exported).classes
