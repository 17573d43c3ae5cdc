"""A linear head on features, and the features of images."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import resolved, small
from teaching import scanned

from carnet import metrics
from carnet.data.cache import cache_root
from carnet.errors import ModelError
from carnet.models.registry import create_model
from carnet.models.weights import load
from carnet.preprocess import Images
from carnet.spec import ModelSpec
from carnet.text import Silent
from carnet.training.augment import Augmentation
from carnet.training.features import FeatureExtractor, Photo, linear_head, num_within
from carnet.training.head import FOLDS, PENALTIES, FoldHeads, LinearHead, divide, fit_head, start_head
from carnet.training.scanning import DataScan

SPEC = ModelSpec(model="carnet_n", classes=("a", "b"), image_size=32)


def blobs(number: int, classes: int = 3, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre for each class, as positive as those after a ReLU."""
    centres = np.random.default_rng(7).random((classes, 16)) * 3
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % classes
    return np.maximum(0, centres[labels] + noise * rng.normal(size=(number, 16))).astype(np.float32), labels


def fitted(features: np.ndarray, labels: np.ndarray, **options: int) -> LinearHead:
    digests = [str(number) for number in range(len(labels))]
    return fit_head([features], labels, digests, int(labels.max()) + 1, **options)


def test_a_head_predicts_new_images_and_its_estimate_holds() -> None:
    head = fitted(*blobs(300))
    features, labels = blobs(600, seed=1)
    logits = features @ head.weight.numpy().T
    top1 = metrics.in_top_k(logits, labels, 1).mean()
    assert top1 > 0.8
    assert abs(top1 - head.top1) < 0.06
    assert head.penalty in PENALTIES
    assert (head.num_fitted, head.num_cross_validated) == (300, 300)


def test_its_probabilities_are_calibrated_on_new_images() -> None:
    head = fitted(*blobs(60, noise=1.5))
    features, labels = blobs(3000, noise=1.5, seed=1)
    probabilities = metrics.softmax(features @ head.weight.numpy().T)
    correct = probabilities.argmax(1) == labels
    assert abs(probabilities.max(1).mean() - correct.mean()) < 0.08


def test_equal_images_give_an_equal_head_and_the_seed_divides_them() -> None:
    features, labels = blobs(60)
    assert torch.equal(fitted(features, labels).weight, fitted(features, labels).weight)
    one, other = (divide(labels, [str(n) for n in range(60)], seed) for seed in (0, 1))
    assert (one != other).any()


def test_a_strong_response_changes_no_class() -> None:
    features, labels = blobs(90)
    weight = fitted(features, labels).weight.numpy()
    assert ((10 * features @ weight.T).argmax(1) == (features @ weight.T).argmax(1)).all()


def test_equal_content_is_on_one_side_and_classes_are_spread() -> None:
    labels = np.repeat(np.arange(4), 10)
    digests = [str(number // 2) for number in range(40)]
    folds = divide(labels, digests, seed=3)
    assert all(folds[number] == folds[number + 1] for number in range(0, 40, 2))
    alone = divide(labels, [str(number) for number in range(40)], seed=3)
    for label in range(4):
        assert sorted(np.bincount(alone[labels == label], minlength=FOLDS)) == [2] * FOLDS


@pytest.mark.parametrize("number", [2, 3, 5])
def test_very_few_images_are_enough(number: int) -> None:
    features, labels = blobs(number, classes=2)
    head = fitted(features, labels)
    assert head.weight.isfinite().all()
    assert head.num_fitted == number


def test_of_many_images_a_part_is_cross_validated() -> None:
    features, labels = blobs(2600)
    head = fitted(features, labels)
    assert (head.num_fitted, head.num_cross_validated) == (2600, 2500)


def extractor(seed: int = 0, flip: float = 0.5) -> FeatureExtractor:
    torch.manual_seed(seed)
    network = create_model("carnet_n", num_classes=2)
    return FeatureExtractor.of_network(network, SPEC, Augmentation(brightness=0.2, flip=flip, rotation=0.0))


def photos_of(*numbers: int) -> list[Photo]:
    def load(number: int) -> Images:
        return np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)

    return [Photo(f"{number:064x}", partial(load, number)) for number in numbers]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path))
    return cache_root() / "features"


def computed(one: FeatureExtractor, photos: list[Photo], view: int = 0) -> tuple[np.ndarray, int]:
    """Return features, and how many photos were not in the cache."""
    seen = [0]
    (features,) = one.features(photos, [view], lambda done, total: seen.append(total))
    return features, seen[-1]


def test_features_are_computed_once_for_each_content(cache: Path) -> None:
    first, number = computed(extractor(), photos_of(1, 2, 2, 3))
    assert number == 3
    assert (first[1] == first[2]).all()
    again, number = computed(extractor(), photos_of(3, 1, 4))
    assert number == 1
    assert (again[0] == first[3]).all()
    assert (again[1] == first[0]).all()


def test_kept_features_take_no_time_of_a_budget(cache: Path) -> None:
    one, photos = extractor(), photos_of(1, 2, 2, 3)
    assert one.seconds_of(photos, [0, 2], 0.5) == [1.5, 1.5]
    computed(one, photos[:2], view=2)
    assert one.seconds_of(photos, [0, 2], 0.5) == [1.5, 0.5]
    for path in cache.glob("*/*.safetensors"):
        # So long unused, they are removed before they are looked for.
        os.utime(path, (0, 0))
    assert one.seconds_of(photos, [0, 2], 0.5) == [1.5, 1.5]
    assert [num_within([1.5, 0.5, 1.0], seconds) for seconds in (0.1, 1.5, 2.0, 9.0)] == [1, 1, 2, 3]


def test_support_counts_different_photos_that_a_head_was_fitted_to() -> None:
    labels, folds = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 0, 1])
    # The first two are copies of one photo.
    assert FoldHeads(folds, []).support(labels, ["a", "a", "b", "c", "d", "e"]).tolist() == [2, 2, 2, 2, 1, 1]


def test_near_copies_are_on_one_side_of_the_cross_validation(photos: Path, trained_run: Path) -> None:
    """If all images of a class are near copies, none is predicted by a head that knows the class."""
    images, model = scanned(photos), load(trained_run)
    red = [images.facts[one.path].sha256 for one in images.data.splits["train"] if one.path.parent.name == "red"]
    near = {digest: frozenset(red) - {digest} for digest in red}
    pipeline = DataScan(images, 48).pipeline(resolved(small(), num_train=24), model.spec)
    top1 = [
        start_head(model.network, model.spec, one, pipeline, device="cpu", seed=0, progress=Silent()).top1
        for one in (images, replace(images, near=near))
    ]
    assert top1 == [1.0, 16 / 24]


def test_features_follow_from_weights_and_view(cache: Path) -> None:
    photos = photos_of(1)
    (whole, _), (mirrored, _), (cut, _) = (computed(extractor(), photos, view) for view in (0, 1, 2))
    other, number = computed(extractor(seed=1), photos)
    assert number == 1
    assert not np.allclose(whole, other)
    assert not np.allclose(whole, mirrored)
    assert not np.allclose(whole, cut)
    flipped = [Photo("f" * 64, lambda: np.ascontiguousarray(photos[0].load()[:, ::-1]))]
    assert np.allclose(computed(extractor(), flipped)[0], mirrored, atol=2e-3)


def test_a_damaged_file_of_features_is_made_anew(cache: Path) -> None:
    first, _ = computed(extractor(), photos_of(1, 2))
    (path,) = cache.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    again, number = computed(extractor(), photos_of(1, 2))
    assert number == 2
    assert (again == first).all()


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "file" / "below"))
    assert computed(extractor(), photos_of(1))[1] == 1
    assert computed(extractor(), photos_of(1))[1] == 1


def test_views_leave_mirroring_out_where_left_and_right_matter() -> None:
    assert extractor().views(3) == [0, 1, 2]
    assert extractor(flip=0.0).views(3) == [0, 2, 3]
    assert extractor().views(1) == [0]


def test_a_network_without_one_linear_layer_at_its_end_is_refused() -> None:
    pytest.importorskip("timm")
    network = create_model("timm/levit_128s", num_classes=2)
    with pytest.raises(ModelError, match="levit"):
        linear_head(network, "timm/levit_128s")
