"""How an exported model was judged, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carnet.calibration import CrossFitted, coverage_curve
from carnet.report.html import document as page
from carnet.report.html import facts_list, listing, picture, section, table
from carnet.report.plots import COLOURS, INK, MUTED, RULE, rendered


def export_html(
    *,
    title: str,
    sentences: Sequence[str],
    judgement: Mapping[str, Any],
    crossed: CrossFitted,
    threshold: float,
    quantization: Mapping[str, Any] | None,
    document: Mapping[str, Any],
) -> str:
    """Write the report of an export as one self-contained HTML document.

    Args:
        title: the heading, plain text.
        sentences: what came out, plain text.
        judgement: numbers, as `carnet.export.gate.Judgement.to_json` gives them.
        crossed: temperature and threshold, judged on images they were not chosen on.
        threshold: what the file has.
        quantization: what was tried, as the JSON report has it; None: nothing.
        document: what the file says about itself.
    """
    problem = judgement["problem"]
    verdict = f"Refused: {problem}." if problem else "Passed: the file may be used in place of the run."
    curve = picture(draw_coverage(crossed, threshold), "Accuracy of the answers given, over their share")
    sections = [
        listing("findings", [verdict, *sentences]),
        section("The file beside what was trained", _comparison(judgement)),
        section(
            "How sure it is",
            f'{curve}<p class="small">Every point is a threshold: how many of the images would get an answer, and how '
            "many of these would be right. Each image is judged with a temperature that was chosen on others.</p>",
        ),
        section("Ways to quantise", _quantization(quantization)) if quantization else "",
        section("Facts", _facts(document)),
    ]
    return page(title, "".join(sections))


def draw_coverage(crossed: CrossFitted, threshold: float) -> bytes:
    """Draw how accurate answers are over the share of images that get one.

    Returns:
        A PNG file, 1650 x 690 pixels.
    """
    # Without pyplot, which keeps global state and may want a display.
    from matplotlib.figure import Figure

    thresholds, coverage, accuracy = coverage_curve(crossed.confidence, crossed.correct)
    figure = Figure(figsize=(11, 4.6), dpi=150, facecolor="white")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.96, top=0.93, bottom=0.14)
    axes.plot(100 * coverage, 100 * accuracy, color=COLOURS[1], linewidth=2)
    answered = float((thresholds >= threshold).mean())
    if 0 < answered < 1:
        axes.axvline(100 * answered, color=COLOURS[0], linewidth=1.2)
        axes.annotate(
            f"threshold {100 * threshold:.0f} %",
            (100 * answered, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-6, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            color=COLOURS[0],
            fontsize=11,
        )
    low = min(float(100 * accuracy.min()), 90)
    axes.set(xlim=(0, 100), ylim=(max(0, low - 5), 100.8), xlabel="images with an answer", ylabel="of these, right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g} %")
        axis.label.set(color=MUTED, fontsize=11)
    axes.tick_params(colors=INK, length=0, labelsize=11)
    axes.grid(color=RULE, linewidth=0.8)
    axes.spines[:].set_visible(False)
    return rendered(figure)


def _comparison(judgement: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in judgement["top1_difference_ci95"])
    rows = [
        ("top-1", f"{100 * judgement['top1']:.1f} %", f"{100 * judgement['top1_pytorch']:.1f} %"),
        (
            "difference, 95 % interval",
            f"{100 * judgement['top1_difference']:+.1f} points, {low:+.1f} to {high:+.1f}",
            "",
        ),
        ("named alike", f"{100 * judgement['top1_agreement']:.1f} %", ""),
        ("largest difference of a probability", f"{judgement['largest_probability_difference']:.2g}", ""),
        ("one image, one thread", f"{judgement['latency_ms']:.2f} ms", f"{judgement['latency_ms_pytorch']:.2f} ms"),
        ("95th percentile", f"{judgement['latency_p95_ms']:.2f} ms", ""),
        ("size", f"{judgement['size_bytes'] / 1e6:.2f} MB", ""),
        (
            "calibration error",
            f"{100 * judgement['calibration_error']:.1f} points",
            f"{100 * judgement['calibration_error_before']:.1f} points without a temperature",
        ),
    ]
    return table(("", "this file", "PyTorch"), rows)


def _quantization(quantization: Mapping[str, Any]) -> str:
    fast = quantization["float_latency_ms"]
    tried = [
        (
            one["variant"],
            f"{100 * one['error']:.1f} %",
            f"{one['latency_ms']:.3f} ms",
            f"{fast / one['latency_ms']:.2f}",
        )
        for one in quantization["tried"]
    ]
    layers = [
        (name, f"{100 * error:.1f} %") for name, error in list(quantization["error_of_each_layer_alone"].items())[:12]
    ]
    return (
        '<p class="small">Error of the logits, as a share of their spread, on training images. Weights have seven '
        f"bits, since eight overflow on processors without VNNI. Float32 takes {fast:.3f} ms.</p>"
        + table(("variant", "error", "one image", "times as fast as float32"), tried)
        + '<p class="small">The layers that suffer most where each alone is quantised:</p>'
        + table(("layer", "error"), layers)
    )


def _facts(document: Mapping[str, Any]) -> str:
    training, versions = document["training"], document["versions"]
    counts = ", ".join(f"{number:,} {split}" for split, number in training["num_images"].items())
    return facts_list(
        [
            ("model", f"{document['model']}, {document['params']:,} parameters, {document['arithmetic']}"),
            ("input", f"{document['image_size']} x {document['image_size']} px, {document['resize']}"),
            ("classes", f"{len(document['classes'])}"),
            ("images", f"{counts}; hash {training['data_hash'][:16]}"),
            ("temperature", f"{document['temperature']:.3f}"),
            ("threshold", f"{document['threshold']:.3f}"),
            ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ]
    )
