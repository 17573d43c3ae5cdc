"""Measure what a teacher is worth: accuracy of small networks with and without one, on subsets of the labels.

Subsets with so many labelled photos per class are drawn from the training images with the seeds named; with
--unlabeled the other training images are given without their labels. Accuracy is that on `valid` without the images
that are byte for byte in the training images. Each run is a process of its own, as from a shell; its result is written
as soon as it ends, and words after -- are further flags of `carnet train`.

Examples:
  python benchmarks/distillation.py DATA --photos 10 --unlabeled --teacher efficientnet_lite0 -- --budget 30m
  python benchmarks/distillation.py DATA --photos all --teacher efficientnet_lite0 --model carnet_n -- --budget 1h
  python benchmarks/distillation.py DATA --photos all --model carnet18 --teacher none efficientnet_lite0 \\
      -- --preset published --image-size 128 --epochs 20
  cd benchmarks/results && python ../distillation.py --figure ../../docs/images/distillation.png \\
      --draw 2026-11-30-distillation-{10,10-seed-1,50,50-seed-{1,2,1-labels-alone},all-s-similar,all-n}.json \\
      2026-11-30-head-start-{10,50,all}.json 2026-11-26-seeds-sports100-50-minutes-160px.json
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from environment import parse_flags, write_as_they_come
from head_start import draw_subset, means, train

from carnet import files
from carnet.config import LITE0
from carnet.export.choice import Candidate, deploy
from carnet.text import quoted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a folder with train and valid")
    parser.add_argument("--model", default="carnet_s")
    parser.add_argument(
        "--teacher", nargs="+", default=["efficientnet_lite0"], help="of a run each; none: labels alone"
    )
    parser.add_argument("--photos", default="all", help="labelled training photos per class")
    parser.add_argument("--unlabeled", action="store_true", help="give the other training photos without labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the subsets, and of training")
    parser.add_argument("--name", default="distillation", help="of the result's file")
    parser.add_argument("--keep", type=Path, help="folder that the runs stay in")
    parser.add_argument("--draw", nargs="+", type=Path, help="results to draw, instead of measuring")
    parser.add_argument("--figure", type=Path, default=Path("distillation.png"))
    options = parse_flags(parser)
    if options.draw:
        files.write_bytes(options.figure, draw([json.loads(path.read_text(encoding="utf-8")) for path in options.draw]))
        return
    if options.data is None:
        parser.error("name a folder with train and valid, or results to --draw")
    command = " ".join(["python benchmarks/distillation.py DATA", *map(quoted, sys.argv[2:])])
    write_as_they_come(options.name, command, options.data.name, measure(options), means)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the result of every run."""
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            subset = Path(scratch) / str(seed)
            # Outside, where it is no class.
            rest = Path(scratch) / f"{seed}-rest"
            draw_subset(options.data, subset, None if options.photos == "all" else int(options.photos), seed, rest=rest)
            for teacher in options.teacher:
                flags = ["--model", options.model, "--seed", str(seed), *options.flags]
                # Without a teacher nobody names the other images.
                is_unlabeled = options.unlabeled and teacher != "none"
                flags += [] if teacher == "none" else ["--teacher", teacher]
                flags += ["--unlabeled", str(rest)] if is_unlabeled else []
                name = f"{options.model}-{Path(teacher).stem}-{options.photos}-{seed}"
                run = (options.keep or Path(scratch)) / name
                way = options.model if teacher == "none" else f"{options.model}, taught by {Path(teacher).stem}"
                about = {"way": way, "photos": options.photos, "seed": seed, "unlabeled": is_unlabeled}
                yield about | train(subset, flags, run)


class Point(NamedTuple):
    """What the figure shows of runs that differ in their seeds alone."""

    labels: str
    """For each class."""
    way: str
    network: Candidate


WAYS = {"pretrained": "s", "taught": "o", "labels alone": "x"}
"""How a network was trained -> its mark."""
NUM_CLASSES = 100


def draw(results: Sequence[dict[str, Any]]) -> bytes:
    """Draw accuracy over latency, a colour for each number of labels and a mark for each way to train; return a PNG.

    Latency is that of the exported file on one thread, and measured now, of all networks on this machine.
    """
    from matplotlib.figure import Figure

    accuracy: dict[Point, list[float]] = defaultdict(list)
    for result in results:
        for run in result["runs"]:
            point, top1 = _point(run)
            if point is not None:
                accuracy[point].append(top1)
    networks = sorted({point.network for point in accuracy}, key=str)
    latency = {network: deploy(network, NUM_CLASSES, 3).latency_ms for network in networks}
    print("\n".join(f"{network}: {milliseconds:.2f} ms" for network, milliseconds in latency.items()))
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours = {labels: f"C{place}" for place, labels in enumerate(("all", "50", "10"))}
    for point, values in sorted(accuracy.items(), key=lambda one: one[0].labels):
        mean, x = statistics.fmean(values), latency[point.network]
        spread = [[mean - min(values)], [max(values) - mean]]
        # Open, so that an equal point stays visible inside.
        shape: dict[str, Any] = {"fillstyle": "none", "markersize": 11} if point.labels == "10" else {}
        axes.errorbar(x, mean, spread, color=colours[point.labels], marker=WAYS[point.way], capsize=3, **shape)
        axes.annotate(point.network.model, (x, mean), textcoords="offset points", xytext=(8, -3), fontsize=7)
    for way, mark in WAYS.items():
        axes.plot([], [], mark, color="grey", label=way)
    for labels, colour in colours.items():
        axes.plot([], [], "s", color=colour, label=f"{labels} labels" + ("" if labels == "all" else " per class"))
    axes.set_xscale("log")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="ms per image, exported, one thread", ylabel="top-1 accuracy, %")
    axes.set_xlim(min(latency.values()) / 1.5, max(latency.values()) * 2.5)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", ncols=2, fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def _point(run: dict[str, Any]) -> tuple[Point | None, float]:
    """Return where a run belongs, and its accuracy in percent, on images that it has not seen.

    CARNet-18 belongs nowhere: its run is short, and not of the recommended recipe.
    """
    if "way" not in run:
        # By benchmarks/seeds.py: labels alone, all of them.
        network = Candidate(run["recipe"]["model"], run["recipe"]["image_size"])
        return Point("all", "labels alone", network), run["top1_without_leaked"]
    top1 = 100 * run["top1"]
    if run["way"] == "frozen":
        return Point(run["photos"], "pretrained", Candidate(LITE0, run["image_size"])), top1
    model, _, teacher = run["way"].partition(", ")
    if model == "carnet18":
        return None, top1
    return Point(run["photos"], "taught" if teacher else "labels alone", Candidate(model, run["image_size"])), top1


if __name__ == "__main__":
    main()
