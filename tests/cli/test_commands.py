"""Every command: help, JSON, exit codes, and errors without a traceback."""

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from children import PATIENCE, finished, started, wait_for
from runs import write_table

import carnet
from carnet import TrainingConfig, files
from carnet.cli.main import COMMANDS, run
from carnet.errors import OutputError


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"carnet {command}" in out.partition("Example")[2]
    assert out.startswith(f"usage: carnet {command} [-h]")


def test_top_level(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(f"  {command} " in out for command in COMMANDS)
    assert call(capsys, "--version")[1] == f"carnet {carnet.__version__}\n"
    code, _, err = call(capsys, "trian")
    assert (code, err) == (2, "carnet: unknown command 'trian'; did you mean carnet train?\n")


def test_flags_are_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import fields

    from carnet import TrainingConfig

    out = call(capsys, "train", "--help")[1]
    assert all(f"--{field.name.replace('_', '-')} " in out for field in fields(TrainingConfig))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "say which images to train on"),
        (["train", "nowhere"], "no folder nowhere"),
        (["train", "nowhere", "--lr", "0"], "--lr must be above 0"),
        (["train", "nowhere", "--epohcs", "3"], "--epochs INT"),
        (["train", "nowhere", "--epochs", "three"], "three"),
        (["train", "--resume", "nowhere"], "no run folder nowhere"),
        (["train", "nowhere", "--model", "resnet"], "unknown model 'resnet'; did you mean resnet"),
        (["evaluate", "nowhere", "data"], "no run folder nowhere"),
        (["predict", "nowhere", "a.jpg"], "no run folder nowhere"),
        (["predict", "nowhere"], "name the images: files, folders, or -"),
        (["predict", "nowhere.onnx", "a.jpg"], "cannot read nowhere.onnx"),
        (["export", "nowhere"], "no run folder nowhere"),
        (["verify", "nowhere.onnx"], "cannot read nowhere.onnx"),
        (["predict", "nowhere", ""], "an image's name is empty"),
        (["demo", "--seed", "-1"], "--seed must be between 0"),
        (["benchmark", "carnet_n", "--batch-sizes", "1,many"], "--batch-sizes are numbers separated by commas"),
        (["compare", "nowhere", "--reach", "high"], "--reach takes per cents separated by commas, got 'high'"),
        (["summary", "carnet81"], "did you mean carnet18"),
        (["compare", "a", "b", "--seeds", "5"], "say how to train; name --models to be trained"),
        (["compare", "a", "b", "--lr", "0.1"], "say how to train; name --models to be trained"),
        (["predict", "nowhere.onnx", "a.jpg", "--csv", "--top-k", "3"], "--csv names one class for each image"),
        (["evaluate", "nowhere.onnx", "data", "--device", "cuda"], "--device cuda is for a run's folder"),
        (["summary", "carnet18", "--image-size", "40"], "at least 47 px"),
        (["summary", "carnet18", "--num-classes", "0"], "num_classes must be at least 1"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "summary", "carnet18")
    assert code == 0
    for number in ("653,376", "1,600,720,576", "1,625,914,880", "357,158,912"):
        assert number in out
    code, out, _ = call(capsys, "summary", "resnet18", "--image-size", "64", "--json")
    document = json.loads(out)
    assert {"model", "num_classes", "input_shape", "params", "macs", "published_mult_adds", "weights_bytes"} <= set(
        document
    )
    assert {"activations_bytes", "layers"} <= set(document)
    assert (document["params"], document["input_shape"]) == (11_217_444, [1, 3, 64, 64])
    assert sum(layer["macs"] for layer in document["layers"]) == document["macs"]


def test_train_json_is_one_document(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--model",
        "carnet_n",
        "--image-size",
        "48",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--output",
        tmp_path / "run",
        "--json",
    ]
    code, out, err = call(capsys, "train", photos, *arguments)
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "Found 3 classes, 24 train, 12 valid images." in err
    assert "epoch 1/1: train loss" in err


def test_resume_takes_no_preset(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "train", "--resume", trained_run, "--preset", "published")
    assert (code, "--resume goes on with the run's own recipe; leave --preset out" in err) == (2, True)


def test_resume_takes_the_runs_own_recipe(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    code, out, _ = call(capsys, "train", "--resume", tmp_path / "run")
    assert code == 0
    assert "2 of 2 epochs" in out
    code, _, err = call(capsys, "train", "--resume", tmp_path / "run", "--epochs", "5")
    assert (code, "does not have --epochs 5 (was 2)" in err) == (2, True)


def test_evaluate(photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code, out, _ = call(capsys, "evaluate", trained_run, photos, "--output", page, "--json")
    document = json.loads(out)
    assert code == 0
    assert {"num_images", "top1", "top5", "macro_f1", "top1_ci95", "num_leaked", "top1_without_leaked"} <= set(document)
    assert [row["name"] for row in document["per_class"]] == ["blue", "green", "red"]
    assert (document["num_images"], document["num_leaked"]) == (12, 0)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    code, out, _ = call(capsys, "evaluate", trained_run, photos, "--split", "train", "--output", page)
    assert code == 0
    assert "24 images" in out
    code, _, err = call(capsys, "evaluate", trained_run, photos, "--split", "test")
    assert (code, "has no test split; it has train, valid" in err) == (2, True)


def test_evaluate_skips_and_counts_unreadable_images(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, page = tmp_path / "data", tmp_path / "page.html"
    shutil.copytree(photos, data)
    (data / "valid" / "red" / "0.jpg").write_bytes(b"broken")
    (data / "valid" / "red" / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (data / "valid" / "loose.jpg").write_bytes(b"broken")
    code, _, err = call(capsys, "evaluate", trained_run, data, "--output", page)
    assert (code, "2 of 14 images cannot be read" in err) == (2, True)
    code, out, _ = call(capsys, "evaluate", trained_run, data, "--output", page, "--skip-unreadable")
    assert code == 0
    assert "dangling.jpg: no such file" in out
    assert "1 image directly in" in out
    code, out, _ = call(capsys, "evaluate", trained_run, data, "--output", page, "--skip-unreadable", "--json")
    document = json.loads(out)
    assert (document["num_images"], document["num_skipped_unreadable"], document["num_leaked"]) == (12, 2, 0)


def test_evaluate_a_table_and_an_archive_as_the_folder(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    archive = Path(shutil.make_archive(str(tmp_path / "pets"), "gztar", photos.parent, photos.name))
    rows = [f"{path},{path.parts[-2]},{path.parts[-3]}" for path in sorted(photos.glob("*/*/*"))]
    (tmp_path / "pets.csv").write_text("\n".join(["path,label,split", *rows]))
    flags = ["--output", tmp_path / "page.html", "--json"]
    documents = [
        json.loads(call(capsys, "evaluate", trained_run, data, *flags)[1])
        for data in (photos, archive, tmp_path / "pets.csv")
    ]
    assert documents[0]["num_images"] == 12
    assert documents[0] == documents[1] == documents[2]
    assert "on pets</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, err = call(capsys, "evaluate", trained_run, archive, "--split", "test", *flags)
    assert (code, f"{archive} has no test split; it has train, valid" in err) == (2, True)


def test_evaluate_leaves_out_what_it_shall_ignore(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ignore.txt").write_text(f"train/red/0.jpg\nvalid/red/8.jpg\n{photos / 'valid/red/9.jpg'}\nnone.jpg\n")
    flags = ["--ignore", tmp_path / "ignore.txt", "--output", tmp_path / "page.html"]
    code, out, _ = call(capsys, "evaluate", trained_run, photos, *flags)
    assert (code, "Ignored: 2 images, as asked." in out, "10 images" in out) == (0, True, True)
    assert "Note: 1 line of the ignore list names no image here: 'none.jpg'." in out
    assert "Ignored: 2 images, as asked." in (tmp_path / "page.html").read_text(encoding="utf-8")
    document = json.loads(call(capsys, "evaluate", trained_run, photos, *flags, "--json")[1])
    assert (document["num_images"], document["num_ignored"]) == (10, 2)
    document = json.loads(call(capsys, "evaluate", trained_run, photos, *flags, "--json", "--split", "all")[1])
    assert (document["num_images"], document["num_ignored"]) == (33, 3)
    (tmp_path / "ignore.txt").write_text("\n".join(str(path) for path in photos.glob("valid/*/*")))
    code, _, err = call(capsys, "evaluate", trained_run, photos, *flags)
    assert (code, "has no images in valid, because the ignore list names them all" in err) == (2, True)


def test_ignoring_in_a_folder_that_the_run_divided(
    flat: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the run held back is told by content, and so is what the list names of it."""
    run_folder = tmp_path / "run"
    shutil.copytree(trained_run, run_folder)
    lines = ["split,label,filepath,sha256"]
    for path in sorted(flat.glob("*/*")):
        split = "valid" if path.stem in "123" else "train"
        lines.append(f"{split},{path.parent.name},x,{hashlib.sha256(path.read_bytes()).hexdigest()}")
    write_table(run_folder, "\n".join(lines))
    (tmp_path / "ignore.txt").write_text("red/1.png\nred/4.png\n")
    flags = ["--ignore", tmp_path / "ignore.txt", "--output", tmp_path / "page.html", "--json"]
    document = json.loads(call(capsys, "evaluate", run_folder, flat, *flags)[1])
    assert (document["num_images"], document["num_ignored"]) == (8, 1)


def test_evaluate_knows_what_the_run_was_trained_on(
    trained_run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(call(capsys, "evaluate", trained_run, "--output", tmp_path / "page.html", "--json")[1])
    assert document["num_images"] == 12
    code, _, err = call(capsys, "evaluate", exported)
    assert (code, err) == (2, f"carnet: name the images as well: carnet evaluate {exported} DATA\n")


def test_a_folder_that_nobody_divided(
    flat: Path, trained_run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "evaluate", exported, flat)
    assert (code, "there is no list of what this model was trained on" in err) == (2, True)
    flags = ["--split", "all", "--output", tmp_path / "page.html"]
    assert "If it was trained on none of them, likely " in call(capsys, "evaluate", exported, flat, *flags)[1]
    code, _, err = call(capsys, "evaluate", trained_run, flat)
    assert (code, "none of them were in the run's valid" in err) == (2, True)


def test_evaluate_refuses_nonsense(photos: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--output", str(photos)], "is a folder; name a file"),
        (["--output", str(trained_run / "model.json")], "model.json does not end in .html"),
        (["--output", str(photos / "gone" / "page.html")], "there is no folder"),
        (["--split", "everything"], "everything"),
    ):
        code, _, err = call(capsys, "evaluate", trained_run, photos, *flags)
        assert (code, message in err, "Traceback" in err) == (2, True, False)


def test_a_page_that_cannot_be_written_does_not_cost_the_numbers(
    trained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    code, out, err = call(capsys, "evaluate", trained_run)
    assert (code, "top-1 " in out, "The report is" in out) == (2, True, False)
    assert json.loads(call(capsys, "evaluate", trained_run, "--json")[1])["top1"] >= 0
    assert err.endswith("report-valid.html: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_behind_standard_output_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "carnet", "--help"]
        ended = finished(command, stdout=full)
    assert (ended.returncode, ended.stderr) == (2, "carnet: input or output: No space left on device\n")


def test_predict(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photos / "valid" / "red" / "8.jpg"
    code, out, err = call(capsys, "predict", trained_run, image, "--top-k", "2")
    assert (code, err.count("\n"), "Note: this run has no threshold" in err) == (0, 1, True)
    assert out.startswith(f"{image}: ")
    assert out.count("%") == 2
    code, out, _ = call(capsys, "predict", trained_run, photos / "valid" / "red", "--json")
    documents: list[dict[str, Any]] = json.loads(out)
    assert (code, len(documents)) == (0, 4)
    assert sum(row["probability"] for row in documents[0]["predictions"]) == pytest.approx(1)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    code, out, err = call(capsys, "predict", trained_run, tmp_path / "broken.jpg", image, tmp_path / "gone.jpg")
    assert code == 1
    assert out.startswith(f"{image}: ")
    assert "broken.jpg: not an image in a supported format" in err
    assert "gone.jpg: no such file" in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(image.read_bytes())))
    code, out, _ = call(capsys, "predict", trained_run, "-", "--top-k", "1")
    assert (code, out.startswith("-: ")) == (0, True)
    assert call(capsys, "predict", trained_run, image, "--top-k", "0")[0] == 2
    for flags in (["--threads", "2"], ["--runtime", "openvino"]):
        code, _, err = call(capsys, "predict", trained_run, image, *flags)
        assert (code, "are for a .onnx file" in err) == (2, True)
    assert call(capsys, "predict", trained_run, tmp_path / "empty")[0] == 1


def test_predict_patterns_take_folders_as_a_shell_does(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos / "valid", tmp_path / "new")
    shutil.copy(photos / "valid" / "red" / "8.jpg", tmp_path / "new")
    code, out, _ = call(capsys, "predict", trained_run, tmp_path / "new" / "*", "--json")
    assert (code, len(json.loads(out))) == (0, 13)
    code, out, _ = call(capsys, "predict", trained_run, f"{tmp_path}/new/**/*.jpg", "--json")
    assert (code, len(json.loads(out))) == (0, 13)


def test_a_folder_that_may_not_be_entered(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    image = photos / "valid" / "red" / "8.jpg"
    code, out, err = call(capsys, "predict", trained_run, tmp_path / "locked" / "1.jpg", image)
    assert (code, out.startswith(f"{image}: "), "1.jpg: no such file" in err) == (1, True, True)


def test_heat_is_told_apart_on_every_system(
    photos: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "ä" * 120
    images = [tmp_path / "a" / "one.jpg", tmp_path / "b" / "ONE.jpg", tmp_path / "b" / f"{long}.jpg"]
    for image in images:
        image.parent.mkdir(exist_ok=True)
        shutil.copy(photos / "valid" / "red" / "8.jpg", image)
    code, out, _ = call(capsys, "predict", exported, *images, "--explain", tmp_path / "heat", "--json")
    names = [Path(document["heat"]).name for document in json.loads(out)]
    # A name may have 255 bytes, with its ending.
    assert (code, names) == (0, ["one.heat.png", "ONE-2.heat.png", f"{'ä' * 100}.heat.png"])


def test_predict_leaves_out_what_it_shall_ignore(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, image = photos / "valid" / "red", photos / "valid" / "blue" / "8.jpg"
    (tmp_path / "ignore.txt").write_text(f"8.jpg\n{image}\nnone.jpg\n")
    arguments = ["predict", trained_run, folder, image, "--ignore", tmp_path / "ignore.txt"]
    code, out, err = call(capsys, *arguments)
    assert (code, len(out.splitlines())) == (0, 3)
    assert "Ignored: 2 images, as asked.\nNote: 1 line of the ignore list names no image here: 'none.jpg'." in err
    documents = json.loads(call(capsys, *arguments, "--json")[1])
    ignored = [document["image"] for document in documents if "ignored" in document]
    assert (len(documents), ignored) == (5, [str(folder / "8.jpg"), str(image)])
    code, _, err = call(capsys, "predict", trained_run, image, "--ignore", tmp_path / "ignore.txt")
    assert (code, "names every image; shorten it" in err) == (2, True)
    code, _, err = call(capsys, "predict", trained_run, image, "--ignore", tmp_path / "none.txt")
    assert (code, "cannot read the ignore list" in err) == (2, True)


def test_training_and_commands_agree(
    photos: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The validation of the last epoch, evaluate and predict see the same images and give the same answers."""
    history = (trained_run / "metrics.csv").read_text().splitlines()[-1].split(",")
    page = tmp_path / "page.html"
    document = json.loads(call(capsys, "evaluate", trained_run, photos, "--json", "--output", page)[1])
    assert float(history[5]) == document["top1"]
    assert float(history[4]) == pytest.approx(document["loss"], rel=1e-6)
    predicted = json.loads(call(capsys, "predict", trained_run, photos / "valid", "--json")[1])
    right = sum(Path(row["image"]).parent.name == row["predictions"][0]["class"] for row in predicted)
    assert right / len(predicted) == document["top1"]


def test_ctrl_c_in_a_real_process(photos: Path, tmp_path: Path) -> None:
    """From the outside: a signal, a checkpoint, exit code 130, and a resumed end."""
    run_folder = tmp_path / "run"
    command = [sys.executable, "-m", "carnet", "train", photos, "--model", "carnet_n", "--image-size", "48"]
    with started([*command, "--epochs", "5000", "--output", run_folder], stderr=subprocess.PIPE) as process:
        wait_for(run_folder / "model.safetensors", process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"go on with carnet train --resume {run_folder}" in err
    assert "Traceback" not in err
    assert (run_folder / "model.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="no such shell on Windows")
def test_a_reader_that_goes_away_does_not_end_training(photos: Path, tmp_path: Path) -> None:
    flags = f"--model carnet_n --image-size 48 --epochs 2 --batch-size 8 --output {tmp_path / 'run'}"
    script = f"set -o pipefail; {sys.executable} -m carnet train {photos} {flags} | head -n 1"
    answer = finished(["bash", "-c", script])
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "Found 3 classes, 24 train, 12 valid images.\n"
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="read-only folders work otherwise on Windows")
def test_missing_extra_is_one_line(tmp_path: Path) -> None:
    """A base installation, played by a `torch` that is not there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Hide:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for arguments in (["summary", "carnet18"], ["train", "x"], ["demo", "--output", str(tmp_path / "demo")]):
        command = [sys.executable, "-m", "carnet", *arguments]
        answer = finished(command, env=environment)
        assert answer.returncode == 2
        assert answer.stderr == f'carnet: carnet {arguments[0]} needs PyTorch: pip install "carnet[train]"\n'


def test_export_verify_and_predict(
    trained_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    code, out, err = call(capsys, "export", trained_run, "--output", model)
    assert (code, err) == (0, "")
    assert f"The model is {model}" in out
    code, out, _ = call(capsys, "export", trained_run, "--output", model, "--json")
    assert json.loads(out)["top1_agreement"] == 1
    code, out, _ = call(capsys, "verify", model)
    assert code == 0
    assert out.endswith(f"This installation reproduces {model}.\n")
    assert json.loads(call(capsys, "verify", model, "--json")[1])["passed"] is True
    photo = photos / "valid" / "red" / "9.jpg"
    assert call(capsys, "predict", model, photo)[1].startswith(f"{photo}: ")


def test_a_preset_and_other_flags_of_compare() -> None:
    from carnet.cli.compare import Command
    from carnet.config import published

    command = Command.parse(
        ["photos", "--models", "carnet18,resnet18", "--preset", "published", "--lr", "0.1", "--json"]
    )
    assert (command.targets, command.models, command.json) == (("photos",), "carnet18,resnet18", True)
    assert command.recipe == TrainingConfig(**(published().to_json() | {"lr": 0.1}))


def test_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["benchmark", "carnet_n@32", "carnet_s@32", "--rounds", "2", "--batch-sizes", "1,2"]
    code, out, _ = call(capsys, *flags, "--runtimes", "pytorch")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["model", *["carnet_n@32"] * 2, *["carnet_s@32"] * 2]
    assert lines[1].endswith(" 1.00")
    assert lines[-1].startswith("2 turns of each, on 1 thread of ")
    document = json.loads(call(capsys, *flags, "--runtimes", "onnxruntime", "--json")[1])
    assert [row["batch_size"] for row in document["timings"]] == [1, 2, 1, 2]
    assert document["machine"]["versions"]["onnxruntime"]


def test_verify_says_no(exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from carnet.edge.classifier import Classifier

    right = Classifier.probabilities
    monkeypatch.setattr(Classifier, "probabilities", lambda self, images: right(self, 255 - images))
    code, out, _ = call(capsys, "verify", exported)
    assert code == 1
    assert "NOT as recorded; probabilities differ by up to 0." in out
    assert "does not reproduce" in out
    assert json.loads(call(capsys, "verify", exported, "--json")[1])["passed"] is False


def test_predict_in_every_form(
    exported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copy(photos / "valid" / "red" / "9.jpg", tmp_path / f"{name}.jpg")
    bad = tmp_path / "c.jpg"
    bad.write_bytes(b"no image")
    code, out, err = call(capsys, "predict", exported, tmp_path / "*.jpg", "--csv")
    assert code == 1
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    assert rows[0]["confident"] in ("True", "False")
    assert rows[2]["error"] == "not an image in a supported format (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM)"
    assert err == f"carnet: {bad}: {rows[2]['error']}\n"
    heat = tmp_path / "heat"
    code, out, _ = call(
        capsys, "predict", exported, tmp_path / "a.jpg", tmp_path / "a.jpg", "--json", "--explain", heat
    )
    assert code == 0
    documents = json.loads(out)
    assert [Path(document["heat"]).name for document in documents] == ["a.heat.png", "a-2.heat.png"]
    assert all(Path(document["heat"]).exists() for document in documents)
    assert isinstance(documents[0]["confident"], bool)


def test_a_run_does_not_say_how_sure_it_is(trained_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photos / "valid" / "red" / "9.jpg"
    code, out, err = call(capsys, "predict", trained_run, image, "--csv")
    assert code == 0
    assert [row["confident"] for row in csv.DictReader(io.StringIO(out))] == [""]
    assert "this run has no threshold" in err
    assert json.loads(call(capsys, "predict", trained_run, image, "--json")[1])[0]["confident"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["*.nothing"], "no file matches"),
        (["a.jpg", "--csv", "--json"], "--csv and --json cannot both be printed"),
        (["a.jpg", "--device", "cuda"], "is for a run's folder"),
        (["a.jpg", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["a.jpg", "--top-k", "0"], "--top-k must be at least 1"),
    ],
)
def test_predict_refuses(exported: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "predict", exported, *flags)
    assert (code, out) == (2, "")
    assert message in err


def test_heat_needs_an_exported_model(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "predict", trained_run, "a.jpg", "--explain", "heat")
    assert code == 2
    assert f"carnet export {trained_run} writes one" in err


def test_an_exported_model_is_judged_like_its_run(
    exported: Path, trained_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.html"
    run_numbers, file_numbers = (
        json.loads(call(capsys, "evaluate", model, photos, "--json", "--output", target)[1])
        for model in (trained_run, exported)
    )
    assert file_numbers["confusion"] == run_numbers["confusion"]
    assert file_numbers["num_leaked"] is None
    assert "photos.onnx, a carnet_n" in target.read_text(encoding="utf-8")
