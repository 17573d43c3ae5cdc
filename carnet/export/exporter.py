"""From a run to a model file: write the graph, evaluate it, and only then give it its name.

The gate: an exported model is evaluated with the edge's own code, on images held back from training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from carnet import files, metrics
from carnet.calibration import Calibration, CrossFitted, calibrate, cross_fit
from carnet.edge.classifier import Classifier
from carnet.edge.runtimes import Runtime
from carnet.edge.selftest import record_tests, verify
from carnet.errors import ConfigError, DataError, GateError, RunError
from carnet.evaluation import EvaluationReport, PredictFn, Selection, select_of_run
from carnet.export.formats import FileFormat, FormatName, format_named
from carnet.export.graph import Graph, to_graph
from carnet.export.quantize import Quantized, quantize
from carnet.machine import take_turns, versions
from carnet.models.weights import TrainedModel, load, on_threads
from carnet.prediction import load_batches
from carnet.report.html import export_html
from carnet.run_folder import RunFolder
from carnet.text import Progress, Silent, counted

SAME_NETWORK = 1e-3
"""Largest difference of a probability between PyTorch and the exported float32 network."""
CALIBRATION_IMAGES = 512
"""Training images for quantisation: half give the ranges, half measure the error."""


@dataclass(frozen=True)
class GateReport:
    """An exported model compared with the network it was made from, on the same held-out images.

    Attributes:
        bench: evaluation of the network in PyTorch.
        edge: evaluation of the file, decoded and computed as where it is used.
        leaked: number of held-out images that are training images; they are left out of everything else here.
        crossed: temperature and threshold, evaluated on images they were not chosen on.
        milliseconds: times of "edge" and "bench" for one image on one thread, from pixels, taken in turns.
        size_bytes: size of the file.
        max_drop: largest acceptable loss of top-1, in points.
        is_quantized: whether the file computes in eight bits.
    """

    bench: EvaluationReport
    edge: EvaluationReport
    leaked: int
    crossed: CrossFitted
    milliseconds: Mapping[str, Sequence[float]]
    size_bytes: int
    max_drop: float
    is_quantized: bool

    @property
    def agreement(self) -> float:
        """Share of the images for which both predict the same class."""
        return float((self.bench.predictions == self.edge.predictions).mean())

    @property
    def difference(self) -> tuple[float, float, float]:
        """Top-1 of the file less PyTorch's, and the ends of its paired 95% interval."""
        return metrics.paired_difference(self.edge.correct, self.bench.correct)

    @property
    def largest_difference(self) -> float:
        """Largest difference of any probability of any image."""
        return float(np.abs(self.bench.probabilities - self.edge.probabilities).max())

    @property
    def problem(self) -> str:
        """Why the file must not be used; empty where it may."""
        drop, largest = -100 * self.difference[0], self.largest_difference
        if drop > self.max_drop:
            return (
                f"top-1 falls by {drop:.1f} points, from {100 * self.bench.top1:.1f}% to {100 * self.edge.top1:.1f}%, "
                f"and --max-drop allows {self.max_drop:g}"
            )
        if not self.is_quantized and largest > SAME_NETWORK:
            return (
                f"probabilities differ from PyTorch's by up to {largest:.4f}; the same network in float32 differs by "
                f"less than {SAME_NETWORK:g}"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, in plain values."""
        difference, *interval = self.difference
        return {
            "num_images": self.edge.num_images,
            "num_leaked_left_out": self.leaked,
            "top1": self.edge.top1,
            "top1_ci95": list(self.edge.top1_ci95),
            "macro_recall": self.edge.macro_recall,
            "top5": self.edge.top5,
            "top1_pytorch": self.bench.top1,
            "top1_agreement": self.agreement,
            "top1_difference": difference,
            "top1_difference_ci95": interval,
            "largest_probability_difference": self.largest_difference,
            **self.crossed.to_json(),
            "latency_ms": statistics.median(self.milliseconds["edge"]),
            "latency_p95_ms": float(np.percentile(self.milliseconds["edge"], 95)),
            "latency_ms_pytorch": statistics.median(self.milliseconds["bench"]),
            "size_bytes": self.size_bytes,
            "max_drop": self.max_drop,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class ExportResult:
    """The outcome of an export.

    Attributes:
        path: the model file, or the folder of another format.
        report: the page beside it.
        gate_report: how it compares with the run's own weights.
        calibration: temperature and threshold in the file.
        quantized: the variants that were tried for eight bits; None: it computes in float32.
    """

    path: Path
    report: Path
    gate_report: GateReport
    calibration: Calibration
    quantized: Quantized | None = None

    def __fspath__(self) -> str:
        """The path of the model file, so that the result can be used as one."""
        return str(self.path)


def export_model(
    run: Path | str,
    output: Path | str | None = None,
    *,
    format: FormatName = "onnx",
    int8: bool = False,
    data: Path | str | None = None,
    max_drop: float = 1.0,
    runtime: Runtime = "onnxruntime",
    progress: Progress | None = None,
    to_graph: Callable[[TrainedModel], Graph] = to_graph,
    quantize: Callable[..., Quantized] = quantize,
) -> ExportResult:
    """Write a run's model as one file that runs without PyTorch, or a folder of another format, if it passes the gate.

    `NAME.export.json` and `NAME.export.html` beside it say how it was evaluated, also of a refused model.

    Args:
        run: the run folder.
        output: the file, or the folder; None: model.onnx in the run folder, model-int8.onnx with `int8`, model-FORMAT.
        format: onnx, or openvino or ncnn, whose own runtime then evaluates the model.
        int8: compute in eight bits where that keeps accuracy.
        data: the run's images, if they are no longer where they were.
        max_drop: largest acceptable loss of top-1, in points.
        runtime: the runtime that evaluates an .onnx file.
        progress: shows what happens; None: nothing is shown.
        to_graph: writes the network as ONNX.
        quantize: finds the best way to eight bits.

    Raises:
        ConfigError: if `max_drop` is no number of points, or the format is unknown or contradicts another option.
        GateError: if the file does not pass; then it is not written.
        MissingExtraError: without the packages of the extra, or the runtime.
        RunError: if the run has no model, or its images are not found.
        DataError: if there are too few images to evaluate with.
        ModelError: if the network cannot be written as ONNX.
        OutputError: if a file cannot be written.
    """
    folder = RunFolder.open(run)
    if not 0 <= max_drop <= 100:
        raise ConfigError(f"--max-drop must be between 0 and 100 points, got {max_drop:g}")
    target = format_named(format, runtime)
    if int8 and format != "onnx":
        raise ConfigError(f"--int8 is for the format onnx; leave it, or --format {format}, out")
    path = Path(output) if output is not None else folder.path / target.default_name(int8)
    target.check(path)
    export = _Export(folder, path, data, max_drop, target, progress or Silent(), load(folder.path))
    return export.write(to_graph, quantize if int8 else None)


@dataclass(frozen=True)
class _Export:
    """One export; `write` does the whole."""

    run: RunFolder
    path: Path
    data: Path | str | None
    max_drop: float
    format: FileFormat
    progress: Progress
    model: TrainedModel

    def write(
        self, to_graph: Callable[[TrainedModel], Graph], quantize: Callable[..., Quantized] | None
    ) -> ExportResult:
        spec = self.model.spec
        held_out = self._images("valid")
        for warning in held_out.warnings:
            self.progress.say(f"Note: {warning}.")
        bench = self._evaluate("the trained network", self.model.logits, held_out)
        if (usable := int((~bench.leaked).sum())) < 2:
            raise DataError(
                f"only {usable} of {counted(len(held_out.samples), 'validation image')} can be decoded and are no "
                "training images; the evaluation needs at least 2"
            )
        self.progress.say(f"Writing {spec.model} as ONNX …")
        graph = to_graph(self.model)
        bar = partial(self.progress.bar, "trying quantisations")
        quantized = None if quantize is None else quantize(graph, self._calibration_images(), progress=bar)
        graph = graph if quantized is None else quantized.chosen.graph

        # Opened as users open a file, but from memory: a refused file must not be left behind, nor one after a kill.
        opened = self.format.open
        edge = self._evaluate("the exported model", opened(graph.sealed(spec.to_json())).logits, held_out)
        unseen = edge.without(bench.leaked)
        calibration = calibrate(unseen.logits, unseen.labels)
        graph = graph.with_temperature(calibration.temperature)
        document = self._document(graph, calibration, quantized)
        classifier = opened(graph.sealed(document))
        document["tests"] = record_tests(classifier, is_quantized=quantized is not None)
        size_bytes = self.format.size_bytes(classifier, graph.sealed(document))
        gate_report = self._compare(bench, edge, classifier, size_bytes, is_quantized=quantized is not None)
        document["metrics"] = gate_report.to_json()
        content = graph.sealed(document)
        final = opened(content)
        if not verify(final).passed:
            raise GateError(f"{self.path} is not written: its predictions are not reproducible on this machine")
        files.make_folder(self.path.absolute().parent)
        if not gate_report.problem:
            self.format.write(final, self.path)
        result = ExportResult(self.path, self._beside(".export.html"), gate_report, calibration, quantized)
        self._report(result, document)
        return result

    def _beside(self, ending: str) -> Path:
        """Return the path of a file beside the model, such as model.export.json."""
        return self.path.with_name(self.path.name.removesuffix(".onnx") + ending)

    def _images(self, split: str) -> Selection:
        """Return the run's images of a split."""
        try:
            classes = self.run.read_config()["data"]["classes"]
            return select_of_run(self.run, split, tuple(classes), self.data, progress=self.progress)
        except DataError as error:
            if self.data is None:
                raise RunError(f"{error}; name the run's images with --data") from error
            raise

    def _evaluate(self, what: str, predict: PredictFn, chosen: Selection) -> EvaluationReport:
        bar = partial(self.progress.bar, f"evaluating {what}")
        return chosen.evaluate(predict, self.model.spec, skip_unreadable=True, progress=bar)

    def _calibration_images(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        samples = self._images("train").samples
        chosen = np.random.default_rng(0).permutation(len(samples))[:CALIBRATION_IMAGES]
        paths = [samples[number].path for number in chosen.tolist()]
        (loaded,) = load_batches(paths, self.model.spec, CALIBRATION_IMAGES)
        images = [image for image in loaded if isinstance(image, np.ndarray)]
        if len(images) < 2:
            raise DataError("--int8 needs at least two training images, to find the ranges of activations")
        return np.stack(images)

    def _document(self, graph: Graph, calibration: Calibration, quantized: Quantized | None) -> dict[str, Any]:
        """Return what the file says about itself."""
        config = self.run.read_config()
        teacher = config.get("teacher")
        return {
            **self.model.spec.to_json(),
            "temperature": calibration.temperature,
            "threshold": calibration.threshold,
            "map_centres": graph.map_centres,
            "arithmetic": "float32" if quantized is None else f"int8, {quantized.chosen.variant}",
            "params": sum(parameter.numel() for parameter in self.model.network.parameters()),
            "training": {
                "data_hash": config["data"]["content_hash"],
                "num_images": config["data"]["num_images"],
                "seed": config["requested"]["seed"],
                "epoch": self.model.info.get("epoch"),
                "teacher": teacher and {key: teacher[key] for key in ("name", "digest")},
            },
            "evaluated_with": self.format.runtime,
            "versions": versions("onnx", *self.format.packages),
        }

    def _compare(
        self,
        bench: EvaluationReport,
        edge: EvaluationReport,
        classifier: Classifier,
        size_bytes: int,
        *,
        is_quantized: bool,
    ) -> GateReport:
        """Compare two evaluations of the same images, and time what made them."""
        leaked, spec = bench.leaked, self.model.spec
        bench, edge = bench.without(leaked), edge.without(leaked)
        image = np.zeros((1, spec.image_size, spec.image_size, spec.in_channels), np.uint8)
        with on_threads(1):
            calls = {"edge": partial(classifier.logits, image), "bench": partial(self.model.logits, image)}
            milliseconds = take_turns(calls, rounds=100)
        crossed = cross_fit(edge.logits, edge.labels)
        return GateReport(
            bench, edge, int(leaked.sum()), crossed, milliseconds, size_bytes, self.max_drop, is_quantized
        )

    def _report(self, result: ExportResult, document: dict[str, Any]) -> None:
        """Write the page and the numbers; raise a GateError for a refused file."""
        quantized, problem = result.quantized, result.gate_report.problem
        # A web page cannot read the document inside the model file, and finds the class names here.
        numbers = {key: value for key, value in document.items() if key not in ("tests", "map_centres")}
        most_sensitive = ""
        if quantized is not None:
            numbers["quantization"] = {
                "float_latency_ms": quantized.float_latency_ms,
                "tried": [
                    {"variant": str(one.variant), "error": one.error, "latency_ms": one.latency_ms}
                    for one in quantized.tried
                ],
                "error_of_each_layer_alone": dict(quantized.sensitivity),
            }
            worst = ", ".join(f"{name} ({error:.2f})" for name, error in quantized.sensitivity[:3])
            most_sensitive = f"; the most sensitive layers are {worst}, by their error as a share of the logits' spread"
        page = export_html(
            title=f"{self.path.name}: {document['model']}, {document['arithmetic']}",
            sentences=sentences(result),
            gate_report=document["metrics"],
            crossed=result.gate_report.crossed,
            threshold=result.calibration.threshold,
            quantization=numbers.get("quantization"),
            document=document,
        )
        files.write_json(self._beside(".export.json"), numbers)
        files.write_text(result.report, page)
        if problem:
            raise GateError(f"{self.path} is not written: {problem}{most_sensitive}; see {result.report}")


def sentences(result: ExportResult) -> list[str]:
    """Return the outcome in sentences."""
    gate, crossed = result.gate_report, result.gate_report.crossed
    calibration, quantized, numbers = result.calibration, result.quantized, gate.to_json()
    # What rounds to zero has no sign of its own.
    difference, low, high = (f"{round(100 * share, 1) + 0.0:+.1f}" for share in gate.difference)
    lines = [
        f"Evaluated on {counted(gate.edge.num_images, 'held-out image')}: top-1 {100 * gate.edge.top1:.1f}%, "
        f"in PyTorch {100 * gate.bench.top1:.1f}% (difference {difference} points, 95% interval {low} to {high}); "
        f"macro recall {100 * gate.edge.macro_recall:.1f}%, agreement {100 * gate.agreement:.1f}%, "
        f"probabilities differ by up to {gate.largest_difference:.2g}.",
        f"{gate.size_bytes / 1e6:.2f} MB; {numbers['latency_ms']:.2f} ms per image on one thread "
        f"(PyTorch {numbers['latency_ms_pytorch']:.2f} ms), without decoding.",
    ]
    if calibration.threshold == 0:
        lines.append("Every prediction was right, so no threshold could be chosen: every prediction is confident.")
    elif crossed.confident_accuracy is None:
        lines.append("No threshold makes the predictions reliable: no prediction is confident.")
    else:
        lines.append(
            f"Predictions are confident from {100 * calibration.threshold:.0f}% on. On images that this threshold was "
            f"not chosen on, {100 * crossed.coverage:.0f}% of the predictions are confident, and "
            f"{100 * crossed.confident_accuracy:.1f}% of these are right."
        )
    if gate.leaked:
        lines.append(f"{counted(gate.leaked, 'held-out image')} left out: byte for byte among the training images.")
    if quantized is not None:
        speed = quantized.float_latency_ms / quantized.chosen.latency_ms
        fast = f"{speed:.2f} times as fast as float32" if speed > 1.05 else "no faster than float32, but smaller"
        lines.append(f"Eight bits ({quantized.chosen.variant}) are {fast} on this machine.")
    if crossed.error < crossed.error_before:
        lines.append(
            f"A temperature of {calibration.temperature:.2f} lowers the calibration error from "
            f"{100 * crossed.error_before:.1f} to {100 * crossed.error:.1f} points."
        )
    return lines
