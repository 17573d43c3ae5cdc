import importlib
import pickle
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import carnet
from carnet import errors

FUNCTIONS = {name for name in carnet.__all__ if name.islower()}
COMMANDS = {
    "benchmark",
    "check",
    "compare",
    "evaluate",
    "explain",
    "export",
    "predict",
    "serve",
    "summary",
    "train",
    "verify",
}
"""Verbs that are functions of the package, or may become functions: no module may have such a name."""


def test_public_names() -> None:
    assert sorted(carnet.__all__) == [
        "Callback",
        "CarnetError",
        "CheckReport",
        "Classifier",
        "EvaluationReport",
        "Explanation",
        "ExportResult",
        "Model",
        "ModelSpec",
        "Prediction",
        "TrainedModel",
        "TrainingConfig",
        "TrainingResult",
        "benchmark",
        "check",
        "compare",
        "create_model",
        "evaluate",
        "export_model",
        "list_models",
        "load",
        "published",
        "summary",
        "train",
        "verify",
    ]
    for name in carnet.__all__:
        assert getattr(carnet, name).__doc__, f"{name} has no docstring"


def test_no_module_takes_the_name_of_a_function() -> None:
    """Python sets an imported module as an attribute of its package, where it would hide a function of that name."""
    top = {module.name for module in pkgutil.iter_modules(carnet.__path__)}
    assert not top & {*FUNCTIONS, *(COMMANDS - {"export"})}
    for module in pkgutil.walk_packages(carnet.__path__, "carnet."):
        if module.name != "carnet.__main__":
            importlib.import_module(module.name)
    for name in carnet.__all__:
        assert callable(getattr(carnet, name)), name
        assert not isinstance(getattr(carnet, name), ModuleType), name


def refused(call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(carnet.CarnetError, match="nowhere"):
        call(*arguments)


def test_functions_are_called_twice(tmp_path: Path) -> None:
    """What the first call imports must not hide the function from the second."""
    nowhere = tmp_path / "nowhere"
    for _ in range(2):
        refused(carnet.train, nowhere)
        refused(carnet.evaluate, nowhere, nowhere)
        refused(carnet.export_model, nowhere)
        refused(carnet.load, nowhere)
        refused(carnet.check, nowhere)
        refused(carnet.benchmark, [str(nowhere)])
        refused(carnet.compare, [nowhere, nowhere])
        refused(carnet.verify, nowhere)
        assert carnet.summary("carnet_n").params > 0
        assert "carnet_n" in carnet.list_models()
        assert carnet.create_model("carnet_n", num_classes=2)
        assert carnet.published().epochs
    called = {"train", "check", "evaluate", "export_model", "load", "list_models", "create_model", "published"}
    assert called | {"benchmark", "compare", "verify", "summary"} == FUNCTIONS


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="trian"):
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
    with pytest.raises(carnet.CarnetError, match=r"carnet\.create_model .*carnet\[train\]"):
        carnet.create_model  # noqa: B018


def test_missing_packages_name_the_extra_that_brings_them() -> None:
    for missing, what, extra in (
        ("torch", "carnet train", "train"),
        ("torch.nn", "carnet export", "export"),
        ("onnx", "carnet.export_model", "export"),
        ("torch", "carnet benchmark", "export"),
    ):
        error = errors.MissingExtraError.explaining(ModuleNotFoundError(name=missing), what)
        assert what in str(error)
        assert f"carnet[{extra}]" in str(error)
    assert errors.MissingExtraError.explaining(ModuleNotFoundError(name="nothing"), "carnet train") is None


@pytest.mark.parametrize(
    "error",
    [
        errors.ImageError("a.jpg", "damaged"),
        errors.UnreadableImagesError([errors.ImageError("a.jpg", "damaged")], 3),
        errors.OutputError("cannot write a"),
        errors.MissingExtraError("carnet train", "PyTorch", "train"),
        errors.OutOfMemoryError("not enough memory"),
        errors.StoppedError("stopped", 2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_between_processes(error: carnet.CarnetError) -> None:
    received = pickle.loads(pickle.dumps(error))
    assert (type(received), str(received)) == (type(error), str(error))
    assert repr(vars(received)) == repr(vars(error))
