"""From a run to a model file: write the graph, judge it through the gate, and only then give it its name.

The gate: an exported model is judged with the edge's own code, on images held back from training, or not at all.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from carnet import files, metrics
from carnet.calibration import Calibration, CrossFitted, calibrate, cross_fit
from carnet.edge.classifier import Classifier
from carnet.edge.runtimes import Runtime
from carnet.edge.selftest import draw_tests, record_tests, verify
from carnet.errors import ConfigError, DataError, GateError, RunError
from carnet.evaluation import EvaluationReport, PredictFn, Selection, select_of_run
from carnet.export.graph import Graph, to_graph
from carnet.export.quantize import Quantized, quantize
from carnet.machine import take_turns, versions
from carnet.models.weights import TrainedModel, load, on_threads
from carnet.prediction import load_batches
from carnet.report.html import export_html
from carnet.run_folder import RunFolder
from carnet.text import Progress, Silent, counted

SAME_NETWORK = 1e-3
"""How much a probability may differ where nothing was made coarser on purpose."""
CALIBRATION_IMAGES = 512
"""Training images that ranges are taken from and variants compared on, half of them each."""


@dataclass(frozen=True)
class GateReport:
    """An exported model beside the one it was made from, on the same images.

    Attributes:
        bench: what PyTorch answers.
        edge: what the file answers, decoded and computed as it will be where it is used.
        leaked: how many of the images are training images; they judge nothing, and are left out of all below.
        agreement: share of the images that both name alike.
        difference: top-1 of the file less PyTorch's.
        interval: of the difference, 95 %, paired.
        largest_difference: of any probability of any image.
        crossed: temperature and threshold, judged on images they were not chosen on.
        latency_ms: of one image on one thread, from pixels; median.
        latency_p95_ms: the same, 95th percentile.
        bench_latency_ms: the median in PyTorch, on one thread, in turns with the file.
        size_bytes: of the file.
        max_drop: accuracy that may be lost, in points.
        is_quantized: whether it computes in eight bits.
    """

    bench: EvaluationReport
    edge: EvaluationReport
    leaked: int
    agreement: float
    difference: float
    interval: tuple[float, float]
    largest_difference: float
    crossed: CrossFitted
    latency_ms: float
    latency_p95_ms: float
    bench_latency_ms: float
    size_bytes: int
    max_drop: float
    is_quantized: bool

    @property
    def problem(self) -> str:
        """Why the file must not be used; empty where it may."""
        if -100 * self.difference > self.max_drop:
            return (
                f"top-1 falls by {-100 * self.difference:.1f} points, from {100 * self.bench.top1:.1f} to "
                f"{100 * self.edge.top1:.1f} %, and --max-drop allows {self.max_drop:g}"
            )
        if not self.is_quantized and self.largest_difference > SAME_NETWORK:
            return (
                f"probabilities differ from PyTorch's by up to {self.largest_difference:.4f}; "
                f"the same network differs by less than {SAME_NETWORK:g}"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """The numbers, in plain values."""
        return {
            "num_images": self.edge.num_images,
            "num_leaked_left_out": self.leaked,
            "top1": self.edge.top1,
            "top1_ci95": list(self.edge.top1_ci95),
            "top5": self.edge.top5,
            "top1_pytorch": self.bench.top1,
            "top1_agreement": self.agreement,
            "top1_difference": self.difference,
            "top1_difference_ci95": list(self.interval),
            "largest_probability_difference": self.largest_difference,
            **self.crossed.to_json(),
            "latency_ms": self.latency_ms,
            "latency_p95_ms": self.latency_p95_ms,
            "latency_ms_pytorch": self.bench_latency_ms,
            "size_bytes": self.size_bytes,
            "max_drop": self.max_drop,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the model file.
        report: the page beside it.
        gate_report: how it compares with the run's own weights.
        calibration: temperature and threshold in the file.
        quantized: what was tried to get to eight bits; None: it computes in float32.
    """

    path: Path
    report: Path
    gate_report: GateReport
    calibration: Calibration
    quantized: Quantized | None = None


def export_model(
    run: Path | str,
    output: Path | str | None = None,
    *,
    int8: bool = False,
    data: Path | str | None = None,
    max_drop: float = 1.0,
    runtime: Runtime = "onnxruntime",
    progress: Progress | None = None,
) -> ExportResult:
    """Write a run's model as one file that runs without PyTorch, if it passes the gate.

    Beside `NAME.onnx` come `NAME.export.json` and `NAME.export.html`, which say how it was judged; of a refused model
    they come alone.

    Args:
        run: the run folder.
        output: the file; None: model.onnx in the run folder, model-int8.onnx with `int8`.
        int8: compute in eight bits where that holds accuracy.
        data: the run's images, if they are no longer where they were.
        max_drop: points of top-1 accuracy that may be lost.
        runtime: through which the file is judged.
        progress: shown what happens; None: nobody.

    Raises:
        ConfigError: if `max_drop` is no number of points.
        GateError: if the file does not pass; then there is none.
        MissingExtraError: without the packages of the extra, or the runtime.
        RunError: if the run has no model, or its images are not to be found.
        DataError: if there are not enough images to judge with.
        ModelError: if the network cannot be written as ONNX.
        OutputError: if a file cannot be written.
    """
    folder = RunFolder.open(run)
    path = Path(output) if output is not None else folder.path / ("model-int8.onnx" if int8 else "model.onnx")
    if not 0 <= max_drop <= 100:
        raise ConfigError(f"--max-drop must be between 0 and 100 points, got {max_drop:g}")
    files.check_target(path, ".onnx")
    return _Export(folder, path, int8, data, max_drop, runtime, progress or Silent()).write()


@dataclass(frozen=True)
class _Export:
    """One export, step by step: read `write`."""

    run: RunFolder
    path: Path
    int8: bool
    data: Path | str | None
    max_drop: float
    runtime: Runtime
    progress: Progress

    def write(self) -> ExportResult:
        model = load(self.run.path)
        held_out = self._images("valid")
        for warning in held_out.warnings:
            self.progress.say(f"Note: {warning}.")
        bench = self._evaluate("as trained", model.logits, held_out, model)
        if (~bench.leaked).sum() < 2:
            raise DataError(
                f"of {counted(len(held_out.samples), 'validation image')} fewer than two can be read and are no "
                "training images; a model cannot be judged with so few"
            )
        self.progress.say(f"Writing {model.spec.model} as ONNX …")
        graph = to_graph(model)
        quantized = self._quantize(graph, model) if self.int8 else None
        graph = graph if quantized is None else quantized.chosen.graph

        # Opened as users open a file, but from memory: a refused one must not lie about, nor one that a kill leaves.
        edge = self._evaluate("as exported", self._open(graph.sealed(model.spec.to_json())).logits, held_out, model)
        unseen = edge.without(bench.leaked)
        calibration = calibrate(unseen.logits, unseen.labels)
        graph = graph.with_temperature(calibration.temperature)
        document = self._document(model, graph, calibration, quantized)
        classifier = self._open(graph.sealed(document))
        document["tests"] = record_tests(classifier, draw_tests(model.spec), quantized=self.int8)
        gate_report = run_gate(
            bench,
            edge,
            model=model,
            classifier=classifier,
            size_bytes=len(graph.sealed(document)),
            max_drop=self.max_drop,
            is_quantized=self.int8,
        )
        document["metrics"] = gate_report.to_json()
        result = ExportResult(self.path, self.path.with_suffix(".export.html"), gate_report, calibration, quantized)
        content = graph.sealed(document)
        if not verify(self._open(content)).passed:
            raise GateError(f"{self.path} is not written: it does not answer twice alike on this machine")
        if not gate_report.problem:
            files.write_bytes(self.path, content)
        self._report(result, document)
        if gate_report.problem:
            raise GateError(self._refusal(gate_report, quantized))
        return result

    def _open(self, content: bytes) -> Classifier:
        return Classifier(content, threads=1, runtime=self.runtime)

    def _images(self, split: str) -> Selection:
        """The run's images of a split; training images know no leaks."""
        try:
            classes = self.run.read_config()["data"]["classes"]
            return select_of_run(self.run, split, tuple(classes), self.data, progress=self.progress)
        except DataError as error:
            if self.data is None:
                raise RunError(f"{error}; say where the run's images are with --data") from error
            raise

    def _evaluate(self, what: str, predict: PredictFn, chosen: Selection, model: TrainedModel) -> EvaluationReport:
        return chosen.evaluate(
            predict,
            model.spec,
            skip_unreadable=True,
            progress=lambda done, total: self.progress.bar(f"judging {what}", done, total),
        )

    def _quantize(self, graph: Graph, model: TrainedModel) -> Quantized:
        samples = self._images("train").samples
        chosen = np.random.default_rng(0).permutation(len(samples))[:CALIBRATION_IMAGES]
        (loaded,) = load_batches([samples[number].path for number in chosen.tolist()], model.spec, CALIBRATION_IMAGES)
        images = [image for image in loaded if isinstance(image, np.ndarray)]
        if len(images) < 2:
            raise DataError("eight bits need at least two training images, from which to take the ranges")
        return quantize(
            graph,
            np.stack(images),
            progress=lambda done, total: self.progress.bar("trying ways to quantise", done, total),
        )

    def _document(
        self, model: TrainedModel, graph: Graph, calibration: Calibration, quantized: Quantized | None
    ) -> dict[str, Any]:
        """What the file says about itself."""
        config = self.run.read_config()
        return {
            **model.spec.to_json(),
            "temperature": calibration.temperature,
            "threshold": calibration.threshold,
            "map_centres": graph.map_centres,
            "arithmetic": "float32" if quantized is None else f"int8, {quantized.chosen.variant}",
            "params": sum(parameter.numel() for parameter in model.network.parameters()),
            "training": {
                "data_hash": config["data"]["content_hash"],
                "num_images": config["data"]["num_images"],
                "seed": config["requested"]["seed"],
                "epoch": model.info.get("epoch"),
            },
            "judged_with": self.runtime,
            "versions": versions("onnx", self.runtime),
        }

    def _report(self, result: ExportResult, document: dict[str, Any]) -> None:
        quantized = result.quantized
        # A web page, which cannot see what the file says about itself, finds the names of the classes here.
        numbers = {key: value for key, value in document.items() if key not in ("tests", "map_centres")}
        if quantized is not None:
            numbers["quantization"] = {
                "float_latency_ms": quantized.float_latency_ms,
                "tried": [
                    {"variant": str(one.variant), "error": one.error, "latency_ms": one.latency_ms}
                    for one in quantized.tried
                ],
                "error_of_each_layer_alone": dict(quantized.sensitivity),
            }
        page = export_html(
            title=f"{result.path.name}: {document['model']}, {document['arithmetic']}",
            sentences=sentences(result),
            gate_report=document["metrics"],
            crossed=result.gate_report.crossed,
            threshold=result.calibration.threshold,
            quantization=numbers.get("quantization"),
            document=document,
        )
        files.write_json(self.path.with_suffix(".export.json"), numbers)
        files.write_text(result.report, page)

    def _refusal(self, gate_report: GateReport, quantized: Quantized | None) -> str:
        hurt = ""
        if quantized is not None:
            worst = ", ".join(f"{name} ({error:.2f})" for name, error in quantized.sensitivity[:3])
            hurt = f"; most is lost in {worst}, as shares of the logits' spread"
        return f"{self.path} is not written: {gate_report.problem}{hurt}; see {self.path.with_suffix('.export.html')}"


def run_gate(
    bench: EvaluationReport,
    edge: EvaluationReport,
    *,
    model: TrainedModel,
    classifier: Classifier,
    size_bytes: int,
    max_drop: float,
    is_quantized: bool,
) -> GateReport:
    """Compare two reports on the same images, and time what made them.

    Args:
        bench: PyTorch's, knowing which images are training images; at least two are none.
        edge: the file's.
        model: what was exported.
        classifier: the file; on one thread.
        size_bytes: of the file.
        max_drop: accuracy that may be lost, in points.
        is_quantized: whether the file computes in eight bits.
    """
    leaked = bench.leaked
    bench, edge = bench.without(leaked), edge.without(leaked)
    difference, low, high = metrics.paired_difference(edge.correct, bench.correct)
    image = np.zeros((1, model.spec.image_size, model.spec.image_size, model.spec.in_channels), np.uint8)
    with on_threads(1):
        calls = {"edge": partial(classifier.logits, image), "bench": partial(model.logits, image)}
        milliseconds = take_turns(calls, rounds=100)
    return GateReport(
        bench=bench,
        edge=edge,
        leaked=int(leaked.sum()),
        agreement=float((bench.predictions == edge.predictions).mean()),
        difference=difference,
        interval=(low, high),
        largest_difference=float(np.abs(bench.probabilities - edge.probabilities).max()),
        crossed=cross_fit(edge.logits, edge.labels),
        latency_ms=statistics.median(milliseconds["edge"]),
        latency_p95_ms=float(np.percentile(milliseconds["edge"], 95)),
        bench_latency_ms=statistics.median(milliseconds["bench"]),
        size_bytes=size_bytes,
        max_drop=max_drop,
        is_quantized=is_quantized,
    )


def sentences(result: ExportResult) -> list[str]:
    """What came out, for people."""
    judged, crossed = result.gate_report, result.gate_report.crossed
    low, high = map(_points, judged.interval)
    same = round(judged.agreement * judged.edge.num_images)
    lines = [
        f"Judged on {counted(judged.edge.num_images, 'image')} that training did not see: "
        f"{100 * judged.edge.top1:.1f} % right, in PyTorch {100 * judged.bench.top1:.1f} % (difference "
        f"{_points(judged.difference)} points, 95 % interval {low} to {high}); {same:,} named alike, probabilities "
        f"differ by up to {judged.largest_difference:.2g}.",
        f"{judged.size_bytes / 1e6:.2f} MB; an image takes {judged.latency_ms:.2f} ms on one thread "
        f"(PyTorch {judged.bench_latency_ms:.2f} ms), decoding left out.",
        _about_confidence(result),
    ]
    if judged.leaked:
        lines.append(f"{counted(judged.leaked, 'image')} stood among the training images too, and judged nothing.")
    quantized = result.quantized
    if quantized is not None:
        speed = quantized.float_latency_ms / quantized.chosen.latency_ms
        fast = f"{speed:.2f} times as fast as float32" if speed > 1.05 else "no faster than float32, but smaller"
        lines.append(f"Eight bits ({quantized.chosen.variant}) are {fast} on this machine.")
    if crossed.error < crossed.error_before:
        lines.append(
            f"A temperature of {result.calibration.temperature:.2f} brings its percentages from "
            f"{100 * crossed.error_before:.1f} to {100 * crossed.error:.1f} points of the truth, on average."
        )
    return lines


def _points(share: float) -> str:
    """0.0123 -> "+1.2"; what rounds to nothing has no sign of its own."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _about_confidence(result: ExportResult) -> str:
    crossed, threshold = result.gate_report.crossed, result.calibration.threshold
    if threshold == 0:
        return "All answers were right, so no threshold could be chosen: it never says that it is not sure."
    if crossed.confident_accuracy is None:
        return "No threshold makes its answers reliable: it is never sure."
    return (
        f"Below {100 * threshold:.0f} % it says it is not sure. On images that this was not chosen on, it is sure of "
        f"{100 * crossed.coverage:.0f} %, and {100 * crossed.confident_accuracy:.1f} % of these answers are right."
    )
