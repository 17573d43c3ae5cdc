import pytest

import carnet


def test_public_names() -> None:
    assert sorted(carnet.__all__) == [
        "Callback",
        "CarnetError",
        "Classifier",
        "EvaluationReport",
        "Explanation",
        "ExportResult",
        "ModelSpec",
        "Prediction",
        "TrainedModel",
        "TrainingConfig",
        "TrainingResult",
        "create_model",
        "evaluate",
        "export_model",
        "list_models",
        "load",
        "published",
        "train",
    ]
    for name in carnet.__all__:
        assert getattr(carnet, name).__doc__, f"{name} has no docstring"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        carnet.trian  # noqa: B018


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.__import__

    def without_torch(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    import importlib
    import sys

    for name in [
        name for name in sys.modules if name.startswith("carnet.models") or name.startswith("carnet.training.s")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_torch)
    assert importlib.import_module("carnet") is carnet
    with pytest.raises(carnet.CarnetError, match=r'^carnet\.load needs PyTorch: pip install "carnet\[train\]"$'):
        carnet.load  # noqa: B018


def test_missing_packages_name_the_extra_that_brings_them() -> None:
    from carnet.errors import MissingExtraError

    for missing, what, extra in (
        ("torch", "carnet train", "train"),
        ("torch.nn", "carnet export", "export"),
        ("onnx", "carnet.export_model", "export"),
        ("torch", "carnet benchmark", "export"),
    ):
        error = MissingExtraError.explaining(ModuleNotFoundError(name=missing), what)
        assert str(error).endswith(f'pip install "carnet[{extra}]"')
    assert MissingExtraError.explaining(ModuleNotFoundError(name="nothing"), "carnet train") is None
