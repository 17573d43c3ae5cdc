"""Examples for Weights & Biases and MLflow log a run, offline; `make test-examples` installs both."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from carnet import TrainingConfig
from carnet.training.run import train

LOGGERS = Path(__file__).parents[2] / "examples" / "loggers"
CONFIG = TrainingConfig(model="carnet_n", image_size=32, epochs=2, batch_size=8)


def test_weights_and_biases(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = runpy.run_path(str(LOGGERS / "to_wandb.py"))["WandbLogger"]()
    train(photos, CONFIG, output=tmp_path / "run", callbacks=[logger])
    (stored,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = stored.read_bytes()
    for name in (b"valid_top1", b"train_loss", b"carnet_n"):
        assert name in content


def test_mlflow(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    logger = runpy.run_path(str(LOGGERS / "to_mlflow.py"))["MlflowLogger"]()
    result = train(photos, CONFIG, output=tmp_path / "run", callbacks=[logger])
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.run_name == "run"
    assert run.data.params["model"] == "carnet_n"
    assert run.data.metrics["valid_top1"] == pytest.approx(result.history[-1]["valid_top1"])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "valid_top1")
    assert [point.step for point in history] == [1, 2]


@pytest.mark.parametrize("path", sorted(LOGGERS.glob("*.py")), ids=lambda path: path.name)
def test_they_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 30
