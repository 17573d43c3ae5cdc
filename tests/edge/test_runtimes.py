"""OpenVINO gives the same predictions from the same file, through the same gate."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from children import finished

from carnet import Classifier, export_model
from carnet.edge.selftest import verify
from carnet.errors import MissingExtraError

pytest.importorskip("openvino")


def test_the_same_predictions(exported: Path) -> None:
    usual, other = Classifier(exported), Classifier(exported, runtime="openvino", threads=1)
    rng = np.random.default_rng(0)
    for number in (1, 5):
        images = rng.integers(0, 256, (number, 48, 48, 3), np.uint8)
        np.testing.assert_allclose(other.logits(images), usual.logits(images), atol=1e-4)
        np.testing.assert_allclose(other.probabilities(images), usual.probabilities(images), atol=1e-5)
    assert verify(other).passed


def test_several_threads_at_once(exported: Path, photos: Path) -> None:
    classifier = Classifier(exported, runtime="openvino")
    paths = sorted(photos.glob("valid/*/*.jpg")) * 2
    alone = [classifier.predict(path) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(classifier.predict, paths), alone):
            assert one.classes == other.classes
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_through_the_gate(trained_run: Path, tmp_path: Path) -> None:
    result = export_model(trained_run, tmp_path / "m.onnx", runtime="openvino")
    assert result.gate_report.agreement == 1
    assert Classifier(result.path).document["evaluated_with"] == "openvino"


SIGNAL_AFTER_ANOTHER_THREAD_HAS_COLLECTED_IT = """
import signal, sys, threading
from carnet import Classifier
# Tests that a shell has started in the background begin with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
models = [Classifier(sys.argv[1], runtime="openvino")]
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_after_another_thread_has_collected_a_model(exported: Path) -> None:
    done = finished([sys.executable, "-c", SIGNAL_AFTER_ANOTHER_THREAD_HAS_COLLECTED_IT, exported])
    assert (done.returncode, done.stdout.strip()) == (0, "stopped")


def test_where_it_is_not_installed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'pip install "carnet\[openvino\]"'):
        Classifier(exported, runtime="openvino")
