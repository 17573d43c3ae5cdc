"""The example for Ray Data classifies a folder on a local Ray with two workers; `make test-examples` installs it."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from children import finished

from carnet import Classifier

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_predict.py"


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-examples installs it")
def test_a_folder(exported: Path, photos: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(photos / "valid", tmp_path / "photos"))
    (images / "broken.jpg").write_bytes(b"no image")
    # Little memory, no dashboard, and nothing sent anywhere.
    bounds = {"RAY_DEFAULT_OBJECT_STORE_MEMORY_MAX_BYTES": str(10**8), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, EXAMPLE, exported, images, tmp_path / "answers", "--workers", "2", "--batch-size", "2"]
    done = finished(command, env=os.environ | bounds)
    assert done.returncode == 0, done.stderr
    texts = [file.read_text(encoding="utf-8") for file in (tmp_path / "answers").glob("*.csv")]
    rows = [row for text in texts for row in csv.DictReader(text.splitlines())]
    classifier = Classifier(exported)
    assert len(rows) == len(list(images.rglob("*.jpg")))
    for row in rows:
        if row["path"].endswith("broken.jpg"):
            assert row["error"]
            continue
        answer = classifier.predict(row["path"])
        assert row["class"] == answer.label
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-5)
