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

__version__ = "0.1.0"

if TYPE_CHECKING:
    from carnet.edge.classifier import Classifier as Classifier
    from carnet.edge.heat import Explanation as Explanation
    from carnet.errors import CarnetError as CarnetError
    from carnet.evaluation import EvaluationReport as EvaluationReport
    from carnet.export.export import ExportResult as ExportResult
    from carnet.export.export import export_model as export_model
    from carnet.models.registry import create_model as create_model
    from carnet.models.registry import list_models as list_models
    from carnet.models.trained import TrainedModel as TrainedModel
    from carnet.models.trained import evaluate as evaluate
    from carnet.models.trained import load as load
    from carnet.prediction import Prediction as Prediction
    from carnet.spec import ModelSpec as ModelSpec
    from carnet.training.config import TrainingConfig as TrainingConfig
    from carnet.training.config import published as published
    from carnet.training.result import TrainingResult as TrainingResult
    from carnet.training.session import train as train

_HOMES = {
    "CarnetError": "errors",
    "Classifier": "edge.classifier",
    "EvaluationReport": "evaluation",
    "Explanation": "edge.heat",
    "ExportResult": "export.export",
    "ModelSpec": "spec",
    "Prediction": "prediction",
    "TrainedModel": "models.trained",
    "TrainingConfig": "training.config",
    "TrainingResult": "training.result",
    "create_model": "models.registry",
    "evaluate": "models.trained",
    "export_model": "export.export",
    "list_models": "models.registry",
    "load": "models.trained",
    "published": "training.config",
    "train": "training.session",
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
