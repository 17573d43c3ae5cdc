"""`carnet card`: a folder that timm reads, and a card that says what was measured and nothing private."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from runs import small

import carnet
import carnet.timm
from carnet.errors import OutputError
from carnet.export.card import write_card
from carnet.training.run import train

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    path = tmp_path_factory.mktemp("card") / "drawn-colours"
    write_card(trained_run, path, license_name="cc-by-4.0")
    return path


def test_timm_loads_it_and_answers_as_the_run_does(folder: Path, trained_run: Path) -> None:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    own = carnet.load(trained_run).predictor
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), own.network(images), rtol=1e-4, atol=1e-5)
    assert network.num_classes == 3
    config = timm.data.resolve_data_config(model=network)
    assert (config["input_size"], config["interpolation"]) == ((3, 48, 48), "bilinear")


def test_the_exported_model_is_there(folder: Path, photos: Path) -> None:
    model = carnet.load(folder / "model.onnx")
    assert model.predict(next(photos.rglob("*.jpg"))).label in model.classes
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "model.onnx", "model.safetensors")
    ]


def test_the_card_says_what_was_measured(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    front = text.split("---")[1]
    document = carnet.load(folder / "model.onnx").predictor.document
    assert "license: cc-by-4.0" in front
    assert f"value: {document['metrics']['top1']:.4f}" in front
    low, high = document["metrics"]["top1_ci95"]
    assert f"95% interval {100 * low:.1f}% to {100 * high:.1f}%" in text
    assert "byte for byte" in text
    assert "names one of its classes for every image" in text
    assert "# drawn-colours" in text


def test_nothing_private_is_in_it(folder: Path, trained_run: Path, photos: Path) -> None:
    for path in folder.iterdir():
        content = path.read_bytes()
        for private in (trained_run.parent, photos):
            assert str(private).encode() not in content, path
    assert not re.search(r"!\[|<img", (folder / "README.md").read_text())


def test_names_are_no_markup(tmp_path: Path) -> None:
    from pictures import save_picture

    for number, name in enumerate(("a|b", "<b>*x*", "[c](d)")):
        for image in range(6):
            split = "train" if image < 4 else "valid"
            save_picture(tmp_path / "data" / split / name / f"{image}.png", (80 * number, 60, 90), 10 * number + image)
    train(tmp_path / "data", small(epochs=1), output=tmp_path / "run")
    write_card(tmp_path / "run", tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "a\\|b" in text
    assert "<b>" not in re.sub(r"\\.", "", text)
    assert json.loads((tmp_path / "card" / "config.json").read_text())["label_names"] == ["<b>*x*", "[c](d)", "a|b"]


def test_other_files_are_left_alone(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=re.escape("mine.txt")):
        write_card(trained_run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "mine.txt").unlink()
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(OutputError):
        write_card(trained_run, tmp_path)
    assert (tmp_path / "README.md").read_text() == "{}"


def test_the_command(call: Call, trained_run: Path, tmp_path: Path) -> None:
    flags = ["--name", "Colours", "--license", "mit", "--json"]
    code, out, err = call("card", trained_run, tmp_path / "card", *flags)
    assert code == 0, err
    assert json.loads(out)["folder"] == str(tmp_path / "card")
    assert "# Colours" in (tmp_path / "card" / "README.md").read_text()
    code, _, err = call("card", trained_run, tmp_path / "card", "--license", "my own")
    assert (code, "--license" in err) == (2, True)
    code, _, err = call("card", trained_run, tmp_path / "other", "--data", tmp_path / "gone")
    assert (code, "gone" in err, (tmp_path / "other").exists()) == (2, True, False)
