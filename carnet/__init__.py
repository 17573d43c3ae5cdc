"""CARNet: small image classifiers, from training on a laptop to the edge device.

    import carnet

    carnet.train("photos", carnet.TrainingConfig(epochs=10), output="runs/photos")
    carnet.export_model("runs/photos", "photos.onnx")
    print(carnet.Classifier("photos.onnx").predict("photo.jpg"))

Importing this package imports neither PyTorch nor ONNX Runtime; each name below brings what it needs when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from carnet.config import TrainingConfig as TrainingConfig
    from carnet.config import published as published
    from carnet.edge.classifier import Classifier as Classifier
    from carnet.edge.classifier import Explanation as Explanation
    from carnet.errors import CarnetError as CarnetError
    from carnet.evaluation import EvaluationReport as EvaluationReport
    from carnet.export.exporter import ExportResult as ExportResult
    from carnet.export.exporter import export_model as export_model
    from carnet.models.registry import create_model as create_model
    from carnet.models.registry import list_models as list_models
    from carnet.models.weights import TrainedModel as TrainedModel
    from carnet.models.weights import evaluate as evaluate
    from carnet.models.weights import load as load
    from carnet.prediction import Prediction as Prediction
    from carnet.spec import ModelSpec as ModelSpec
    from carnet.training.loop import Callback as Callback
    from carnet.training.run import TrainingResult as TrainingResult
    from carnet.training.run import train as train

_HOMES = {
    "Callback": "training.loop",
    "CarnetError": "errors",
    "Classifier": "edge.classifier",
    "EvaluationReport": "evaluation",
    "Explanation": "edge.classifier",
    "ExportResult": "export.exporter",
    "ModelSpec": "spec",
    "Prediction": "prediction",
    "TrainedModel": "models.weights",
    "TrainingConfig": "config",
    "TrainingResult": "training.run",
    "create_model": "models.registry",
    "evaluate": "models.weights",
    "export_model": "export.exporter",
    "list_models": "models.registry",
    "load": "models.weights",
    "published": "config",
    "train": "training.run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'carnet' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"carnet.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        from carnet.errors import MissingExtraError

        explained = MissingExtraError.explaining(error, f"carnet.{name}")
        raise explained or error from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
