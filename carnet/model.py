"""The model object: what `carnet.train` and `carnet.load` return, the same for a run and for an exported file.

    model = carnet.train("photos", epochs=30)     # or carnet.load("runs/photos-carnet_s"), carnet.load("model.onnx")
    model.predict("a.jpg")
    model.explain("a.jpg")
    model.evaluate("photos", split="test")
    model.export("model.onnx")

An exported file is computed without PyTorch, and works on the base installation.
"""

from __future__ import annotations

import difflib
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from carnet.edge.classifier import Classifier
from carnet.edge.model_file import is_model_file
from carnet.errors import ConfigError, ImageError, RunError, explaining_missing_extra
from carnet.explanation import Explanation
from carnet.hub_models import fetch, is_hub_model
from carnet.prediction import Prediction
from carnet.preprocess import MAX_PIXELS, ImageSource
from carnet.spec import ModelSpec
from carnet.text import Progress, quoted

if TYPE_CHECKING:
    from carnet.config import TrainingConfig
    from carnet.data.samples import Layout
    from carnet.edge.runtimes import Runtime
    from carnet.evaluation import EvaluationReport
    from carnet.export.exporter import ExportResult
    from carnet.export.formats import FormatName
    from carnet.models.weights import TrainedModel
    from carnet.run_folder import DataPlace, RunFolder
    from carnet.training.loop import Callback
    from carnet.training.run import TrainingResult

Split = Literal["train", "valid", "test", "all"]
_MOVED = {
    **{name: f"predictor.{name}" for name in ("network", "info", "logits", "probabilities")},
    **{name: f"result.{name}" for name in ("report", "history", "document", "top1")},
    "run": "path",
}
"""What `load` and `train` returned before version 0.2 had, and where it is now."""


class Model:
    """A trained classifier: a run, which PyTorch computes, or an exported file, which needs no PyTorch.

    It may be pickled, and used from several threads at once.

    Attributes:
        path: the run's folder or the exported file; None for a file that was given as bytes.
        kind: "run" or "file".
        predictor: what computes: a `carnet.TrainedModel` of a run, a `carnet.Classifier` of an exported file.
    """

    def __init__(
        self, path: Path | None, predictor: TrainedModel | Classifier, result: TrainingResult | None = None
    ) -> None:
        self.path = None if path is None else path.absolute()
        self.kind: Literal["run", "file"] = "file" if isinstance(predictor, Classifier) else "run"
        self.predictor = predictor
        self._result = result

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Give what objects of version 0.1 had, with a warning that says what to write now."""
            if name not in _MOVED:
                raise AttributeError(f"a carnet.Model has no attribute {name!r}", name=name, obj=self)
            warnings.warn(f"write model.{_MOVED[name]} instead of .{name}", DeprecationWarning, stacklevel=2)
            return attrgetter(_MOVED[name])(self)

    def __repr__(self) -> str:
        return f"<carnet.Model {self.spec.model}, {self.spec.num_classes} classes, {self.path or 'from bytes'}>"

    @property
    def spec(self) -> ModelSpec:
        """The network's name, the classes, and how an image becomes an input."""
        return self.predictor.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.spec.classes

    @property
    def threshold(self) -> float | None:
        """The probability below which a prediction is not confident; None for a run, which is not calibrated."""
        return self.predictor.threshold

    @property
    def result(self) -> TrainingResult:
        """How the training ended.

        Raises:
            RunError: if the model was loaded; `result.json` in the run's folder has the numbers.
        """
        if self._result is None:
            raise RunError("only a model that carnet.train returns has a result; see result.json in the run's folder")
        return self._result

    def predict(self, image: ImageSource, top_k: int = 5) -> Prediction:
        """Classify one image.

        Args:
            image: a path, the bytes of a file, a Pillow image, or a uint8 array (H, W, 3) in RGB order.
            top_k: the number of classes to return, most probable first.

        Raises:
            ImageError: if the image cannot be decoded.
            ConfigError: if `top_k` is below 1, or several images are given.
        """
        if isinstance(image, list | tuple):
            raise ConfigError("predict takes one image; predict_many takes several")
        return self.predictor.predict(image, top_k)

    def predict_many(
        self, images: Iterable[ImageSource], batch_size: int = 32, top_k: int = 5
    ) -> Iterator[Prediction | ImageError]:
        """Classify any number of images in order; an `ImageError` takes the place of one that cannot be decoded.

        Args:
            images: as `predict` takes them; they are read as the iterator advances.
            batch_size: the number of images that are computed together.
            top_k: the number of classes to return for each.

        Raises:
            ConfigError: at once, if `batch_size` or `top_k` is below 1.
        """
        return self.predictor.predict_many(images, batch_size, top_k)

    def explain(self, image: ImageSource, label: str | None = None) -> Explanation:
        """Show where in an image a class is seen; the network runs once.

        Args:
            image: as `predict` takes it.
            label: the class; None: the most probable one.

        Raises:
            ImageError: if the image cannot be decoded.
            ConfigError: if there is no such class.
            ModelError, ModelFileError: if the network has no class maps.
        """
        return self.predictor.explain(image, label)

    def evaluate(
        self,
        data: Path | str | None = None,
        *,
        split: Split = "valid",
        batch_size: int = 32,
        skip_unreadable: bool = False,
        layout: Layout = "auto",
        ignore: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> EvaluationReport:
        """Evaluate the model on labelled images.

        A run knows which images it was trained on: they are counted as leaked, and images that it held out of data
        without splits are found again by their content. An exported file has no such list. The loss of a run is that of
        its probabilities as they are, the loss of an exported file that of its calibrated ones.

        Args:
            data: the images, in any form that `carnet train` takes; None: those that the run was trained on.
            split: the images to take; all is for data without splits.
            batch_size: the number of images that are computed together; it does not change the numbers.
            skip_unreadable: leave out and count images that cannot be decoded.
            layout: what the folders in `data` are, classes or splits, where that is ambiguous.
            ignore: paths of images to leave out and count.
            progress: shows how far the evaluation is; None: on standard error; `carnet.text.Silent()`: nowhere.

        Raises:
            ConfigError: if an exported file is evaluated without `data`, or `batch_size` is below 1.
            RunError: if the run's folder is gone or damaged.
            DataError: if the data lacks the split, or has classes that the model does not know.
            UnreadableImagesError: if images cannot be decoded; it lists them.
        """
        # Imported here, because predicting on a small device needs none of it.
        from carnet.evaluation import select_samples
        from carnet.report.console import shown
        from carnet.run_folder import DataPlace

        digests = self._run().digests() if self.kind == "run" else None
        if data is None:
            place = self.recorded_data(layout, ignore)
        else:
            # A run that was published may have no record.
            has_record = self.kind == "run" and self._run().config.exists()
            unlabeled = self._run().recorded_data().moved_to(data).unlabeled if has_record else None
            place = DataPlace(data, layout, ignore, unlabeled)
        logits = self.predictor.calibrated_logits if isinstance(self.predictor, Classifier) else self.predictor.logits
        with shown(progress) as display:
            chosen = select_samples(place, split, self.classes, digests, progress=display)
            if self.kind == "run":
                chosen = chosen.with_near_leaks(self._run(), display)
            return chosen.evaluate(
                logits,
                self.spec,
                batch_size=batch_size,
                skip_unreadable=skip_unreadable,
                progress=lambda done, total: display.bar("evaluating", done, total),
            )

    def recorded_data(self, layout: Layout = "auto", ignore: Sequence[str] = ()) -> DataPlace:
        """Return where the images of the run are, and how they are found again.

        Args:
            layout: takes the place of the recorded one, unless it is auto.
            ignore: takes the place of the recorded list, unless it is empty.

        Raises:
            ConfigError: if the model is an exported file, which has no such record.
            RunError: if the run's folder is gone or damaged.
        """
        if self.kind == "file":
            raise ConfigError(f"DATA is missing; name the images: carnet evaluate {quoted(self.path or 'MODEL')} DATA")
        then = self._run().recorded_data()
        layout = then.layout if layout == "auto" else layout
        return then._replace(layout=layout, ignore=ignore or then.ignore)

    def export(
        self,
        output: Path | str | None = None,
        *,
        format: FormatName = "onnx",
        int8: bool = False,
        data: Path | str | None = None,
        max_drop: float = 1.0,
        runtime: Runtime = "onnxruntime",
        progress: Progress | None = None,
    ) -> ExportResult:
        """Write one `.onnx` file that runs without PyTorch, if it answers as the model does on held-out images.

        Or a folder for another runtime: `format` openvino or ncnn, which must be installed.

        Of several processes that train together, only the first one may export.

        Args:
            output: the file, or the folder; None: `model.onnx` in the run's folder, `model-int8.onnx` with `int8`,
                or `model-FORMAT`.
            format: onnx, openvino or ncnn.
            int8: compute in eight bits where that keeps the accuracy.
            data: the run's images, if they are no longer where they were.
            max_drop: percentage points of top-1 accuracy that may be lost.
            runtime: what computes an `.onnx` file when it is evaluated.
            progress: as `evaluate` takes it.

        Returns:
            The result, which may be used as the path of the file: `carnet.load(model.export())`.

        Raises:
            ConfigError: if the model is an exported file already, or `max_drop` is out of range.
            GateError: if the file does not answer as the model does; then it is not written.
            RunError: if the run's folder is gone or damaged, or its images are not where they were.
            DataError: if fewer than two held-out images can be read.
            ModelError: if the network cannot be written as ONNX.
            OutputError: if a file cannot be written.
            MissingExtraError: if the packages of the extra `export`, or the runtime, are not installed.
        """
        if self.kind == "file":
            raise ConfigError(f"{self.path or 'the model'} is exported already; copy it, or export its run")
        from carnet.report.console import shown

        with explaining_missing_extra("carnet export"):
            from carnet.export.exporter import export_model
        run = self._run().path
        with shown(progress) as display:
            return export_model(
                run,
                output,
                format=format,
                int8=int8,
                data=data,
                max_drop=max_drop,
                runtime=runtime,
                progress=display,
            )

    def _run(self) -> RunFolder:
        from carnet.run_folder import RunFolder

        assert self.path is not None, "a run has a folder"
        return RunFolder.open(self.path)


def load(
    source: PathLike[str] | str | bytes,
    *,
    device: str | None = None,
    threads: int | None = None,
    runtime: Runtime = "onnxruntime",
    max_pixels: int = MAX_PIXELS,
) -> Model:
    """Load a trained model: the folder of a run, or a file that `carnet export` has written.

    No code from a file is executed.

    Args:
        source: the folder, the `.onnx` file, the bytes of such a file, or a model of the Hub, hf:OWNER/NAME.
        device: where PyTorch computes a run: cpu, cuda or mps; None: on a GPU if there is one.
        threads: compute threads of an exported file; None: the runtime chooses, and takes all cores.
        runtime: what computes an exported file: onnxruntime, or openvino (`pip install "carnet[openvino]"`).
        max_pixels: larger images are refused before they are decoded.

    Raises:
        RunError: if the folder is no run, has no model yet, or a file of it is damaged.
        ModelFileError: if the file is missing, damaged, newer than this version, or not written by `carnet export`.
        ConfigError: if there is no such device or runtime, or an option is for the other kind of model.
        MissingExtraError: if a run is loaded without PyTorch, or OpenVINO is not installed.
        HubError: if the Hub has no such model, or does not answer.
    """
    if not isinstance(source, bytes) and is_hub_model(source):
        source = fetch(Path(source), "model.onnx")
    path = None if isinstance(source, bytes) else Path(source)
    if path is None or is_model_file(path):
        if device not in (None, "auto", "cpu"):
            raise ConfigError(f"--device {device} is for runs only; {path or 'the file'} is computed on the CPU")
        content = source if isinstance(source, bytes) else Path(source)
        return Model(path, Classifier(content, threads=threads or 0, runtime=runtime, max_pixels=max_pixels))
    if runtime != "onnxruntime" or threads:
        raise ConfigError("--runtime and --threads are for .onnx files; PyTorch computes a run")
    with explaining_missing_extra("carnet.load of a run"):
        from carnet.models import weights
    trained = weights.load(path, device=device)
    trained.max_pixels = max_pixels
    return Model(path, trained)


def evaluate(
    run: Path | str, data: Path | str, *, split: Split = "valid", device: str | None = None, **options: Any
) -> EvaluationReport:
    """Evaluate a run or an exported file: `carnet.load(run).evaluate(data)`, with the options of `Model.evaluate`."""
    return load(run, device=device).evaluate(data, split=split, **options)


def train(
    data: Path | str | None = None,
    config: TrainingConfig | None = None,
    *,
    output: Path | str | None = None,
    init: Path | str | None = None,
    resume: Path | str | None = None,
    ignore: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Model:
    """Train a classifier on labelled images, and return it with the saved weights.

        model = carnet.train("photos", epochs=30, image_size=160)

    With `devices` above 1 it starts processes; a script then needs `if __name__ == "__main__":`. Under torchrun every
    process calls it, and gets the same model.

    Args:
        data: the images, in a form that `carnet.data.find` describes; with `resume`, None is where they were.
        config: the recipe; None: the recommended one, or with `resume` the run's own.
        output: folder of the run, which must be new or empty; None: `runs/<data>-<model>`, numbered if taken. With
            `resume`, the run is copied there and goes on there.
        init: another run whose weights to start from.
        resume: a run to continue, from its last checkpoint.
        ignore: paths of images to leave out, below the data's folder or absolute; none with `resume`: the run's own.
        callbacks: called at every step and epoch, after the built-in ones.
        progress: shows what happens; None: on standard error; `carnet.text.Silent()`: nowhere.
        settings: fields of `carnet.TrainingConfig`, such as `epochs=30`, which take the place of those of the recipe.

    Raises:
        CarnetError: one of its kinds, see `carnet.errors`.
    """
    with explaining_missing_extra("carnet.train"):
        from carnet.export.choice import within_limits
        from carnet.report.console import shown
        from carnet.training import run as training
    started = time.monotonic()
    recipe = _with_settings(config or training.recipe_of(resume), settings)
    if data is not None and resume is None:
        with shown(progress) as display:
            recipe = within_limits(recipe, data, init=init, output=output, ignore=ignore, progress=display)
    result = training.train(
        data,
        recipe,
        output=output,
        init=init,
        resume=resume,
        ignore=ignore,
        callbacks=callbacks,
        progress=progress,
        started=started,
    )
    return Model(result.run, result.model, result)


def _with_settings(config: TrainingConfig, settings: dict[str, Any]) -> TrainingConfig:
    names = [field.name for field in fields(config)]
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(f"train has no setting {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return replace(
        config, **{name: fspath(value) if isinstance(value, PathLike) else value for name, value in settings.items()}
    )
