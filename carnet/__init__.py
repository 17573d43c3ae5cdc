"""CARNet: small image classifiers, from training on a laptop to the edge device.

    import carnet

    model = carnet.train("photos", epochs=30)
    print(model.predict("photo.jpg"))
    model.export("model.onnx")

    model = carnet.load("model.onnx")  # runs without PyTorch

Importing this package imports neither PyTorch nor ONNX Runtime; each name below imports what it needs when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from carnet.checks.check import CheckReport as CheckReport
    from carnet.comparison.latency import benchmark as benchmark
    from carnet.comparison.verdict import compare as compare
    from carnet.config import TrainingConfig as TrainingConfig
    from carnet.config import published as published
    from carnet.data_check import check as check
    from carnet.edge.classifier import Classifier as Classifier
    from carnet.edge.selftest import verify as verify
    from carnet.errors import CarnetError as CarnetError
    from carnet.evaluation import EvaluationReport as EvaluationReport
    from carnet.explanation import Explanation as Explanation
    from carnet.export.exporter import ExportResult as ExportResult
    from carnet.export.exporter import export_model as export_model
    from carnet.model import Model as Model
    from carnet.model import evaluate as evaluate
    from carnet.model import load as load
    from carnet.model import train as train
    from carnet.models.registry import create_model as create_model
    from carnet.models.registry import list_models as list_models
    from carnet.models.summary import summarize as summary  # noqa: F401
    from carnet.models.weights import TrainedModel as TrainedModel
    from carnet.prediction import Prediction as Prediction
    from carnet.spec import ModelSpec as ModelSpec
    from carnet.training.loop import Callback as Callback
    from carnet.training.run import TrainingResult as TrainingResult

_HOMES = {
    "Callback": "training.loop",
    "CarnetError": "errors",
    "CheckReport": "checks.check",
    "Classifier": "edge.classifier",
    "EvaluationReport": "evaluation",
    "Explanation": "explanation",
    "ExportResult": "export.exporter",
    "Model": "model",
    "ModelSpec": "spec",
    "Prediction": "prediction",
    "TrainedModel": "models.weights",
    "TrainingConfig": "config",
    "TrainingResult": "training.run",
    "benchmark": "comparison.latency",
    "check": "data_check",
    "compare": "comparison.verdict",
    "create_model": "models.registry",
    "evaluate": "model",
    "export_model": "export.exporter",
    "list_models": "models.registry",
    "load": "model",
    "published": "config",
    "summary": "models.summary:summarize",
    "train": "model",
    "verify": "edge.selftest",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'carnet' has no attribute {name!r}")
    try:
        home, _, attribute = _HOMES[name].partition(":")
        module = importlib.import_module(f"carnet.{home}")
    except ModuleNotFoundError as error:
        from carnet.errors import MissingExtraError

        explained = MissingExtraError.explaining(error, f"carnet.{name}")
        raise explained or error from None
    return getattr(module, attribute or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
