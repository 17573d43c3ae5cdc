"""The input pipeline: order, views and augmentation of training images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carnet import TrainingConfig
from carnet.data.find import find_images
from carnet.data.samples import Sample
from carnet.errors import ImageError
from carnet.preprocess import Images
from carnet.spec import ModelSpec
from carnet.training.augment import Augmentation
from carnet.training.pipeline import Batch, ImageFiles, Pipeline, pixel_loader
from carnet.training.schedule import View


@given(
    num_images=st.integers(1, 100),
    batch_size=st.integers(1, 20),
    epoch=st.integers(0, 3),
    first_step=st.integers(0, 120),
)
def test_an_epoch_has_every_image_once_and_none_alone(
    num_images: int, batch_size: int, epoch: int, first_step: int
) -> None:
    pipeline = of_nothing(num_images, batch_size, seed=3)
    whole = places(pipeline, epoch)
    assert sorted(place for batch in whole for place in batch) == list(range(num_images))
    assert len(whole) == pipeline.steps_per_epoch()
    assert all(len(batch) == batch_size for batch in whole[:-1])
    assert batch_size == 1 or num_images == 1 or len(whole[-1]) > 1
    assert places(pipeline, epoch, first_step) == whole[first_step:]


def of_nothing(num_images: int, batch_size: int, seed: int) -> Pipeline:
    files = ImageFiles([Sample(Path(str(number)), 0) for number in range(num_images)], seed)
    return Pipeline(files, lambda _: np.zeros((8, 8, 3), np.uint8), Augmentation(0, 0, 0), seed, batch_size)


def places(pipeline: Pipeline, epoch: int, first_step: int = 0) -> list[list[int]]:
    return [[item.place for item in items] for items in pipeline.items(epoch, first_step)]


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = [places(of_nothing(50, 50, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for (order,) in orders}) == 3


@pytest.fixture
def pipeline(photos: Path) -> Pipeline:
    found = find_images(photos)
    spec = ModelSpec(model="carnet18", classes=found.classes, image_size=48)
    files = ImageFiles(found.splits["train"], seed=0)
    return Pipeline(files, pixel_loader(None, spec), Augmentation(0.2, 0.5, 15), seed=5, batch_size=7)


def whole_view(_: int) -> View:
    return View(48)


def changed(augmentation: Augmentation, image: Images, seed: int) -> Images:
    return augmentation.apply(image, augmentation.draw(np.random.default_rng(seed)), len(image))


def test_a_sample_is_a_function_of_seed_epoch_and_place(pipeline: Pipeline) -> None:
    loaded = pipeline.load_step(0, 0)

    def first(epoch: int, seed: int = 5) -> torch.Tensor:
        return replace(pipeline, seed=seed).changed(loaded, epoch, View(48)).images[0]

    batch = next(pipeline.batches(0, 0, whole_view))
    assert (batch.images.shape, batch.images.dtype, batch.size) == ((7, 48, 48, 3), torch.uint8, 48)
    assert [int(label) for label in batch.labels] == [pipeline.images.samples[image.place].label for image in loaded]
    assert torch.equal(batch.images[0], first(0))
    assert not torch.equal(first(0), first(1))
    assert not torch.equal(first(0), first(0, seed=6))


def test_threads_do_not_change_anything(pipeline: Pipeline) -> None:
    """The view changes inside the epoch here, while later images are already being prepared."""

    def view(step: int) -> View:
        return View(32 + 8 * step, 1 - step / 10)

    alone = list(pipeline.batches(0, 0, view))
    helped = list(pipeline.batches(0, 0, view, threads=3))
    assert [batch.size for batch in alone] == [32, 40, 48, 56]
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    (later,) = pipeline.batches(0, 3, view)
    assert torch.equal(later.images, alone[3].images)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_file_that_disappears_is_named(threads: int, pipeline: Pipeline, tmp_path: Path) -> None:
    samples = [*pipeline.images.samples[:3], Sample(tmp_path / "gone.jpg", 0)]
    broken = replace(pipeline, images=ImageFiles(samples, seed=0), batch_size=2)
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        list(broken.batches(0, 0, whole_view, threads=threads))


def test_each_flag_sets_its_strength() -> None:
    recipe = TrainingConfig(brightness=0.1, flip=0.2, rotation=3, color=0.4)
    assert Augmentation.from_config(recipe) == Augmentation(brightness=0.1, flip=0.2, rotation=3, color=0.4)


def test_augmentation_off_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert np.array_equal(changed(Augmentation(0, 0, 0), image, 1), image)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_augmentation_is_the_published_one(seed: int) -> None:
    """Pixel for pixel what torchvision's functional transforms give for the published ranges and order."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    from PIL import Image

    image = np.random.default_rng(seed).integers(0, 256, (31, 31, 3), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    factor, mirrored, angle = rng.uniform(0.8, 1.2), rng.random() < 0.5, rng.uniform(-15, 15)
    reference = functional.adjust_brightness(Image.fromarray(image), factor)
    reference = functional.hflip(reference) if mirrored else reference
    reference = functional.rotate(reference, angle)
    assert np.array_equal(changed(Augmentation(0.2, 0.5, 15), image, seed), np.asarray(reference))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_color_jitter_equals_torchvisions(seed: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    from PIL import Image

    image = np.random.default_rng(seed).integers(0, 256, (31, 31, 3), dtype=np.uint8)
    augmentation = Augmentation(0, 0, 0, color=0.4)
    change = augmentation.draw(np.random.default_rng(seed))
    reference = functional.adjust_contrast(Image.fromarray(image), change.contrast)
    reference = functional.adjust_saturation(reference, change.saturation)
    assert np.array_equal(augmentation.apply(image, change, 31), np.asarray(reference))
    assert 0.6 <= min(change.contrast, change.saturation) <= max(change.contrast, change.saturation) <= 1.4
    # Switching it on leaves all other draws as they were.
    assert change[:7] == Augmentation(0, 0, 0).draw(np.random.default_rng(seed))[:7]


def test_augmentation_draws_from_the_stated_ranges() -> None:
    white = np.full((9, 9, 3), 200, dtype=np.uint8)
    means = [changed(Augmentation(0.2, 0, 0), white, i).mean() / 200 for i in range(300)]
    assert 0.8 <= min(means) < 0.83
    assert 1.17 < max(means) <= 1.2
    marked = np.zeros((9, 9, 3), dtype=np.uint8)
    marked[:, 0] = 255
    flipped = [changed(Augmentation(0, 0.25, 0), marked, i)[0, 8, 0] == 255 for i in range(400)]
    assert 0.18 < np.mean(flipped) < 0.32


@settings(max_examples=40)
@given(
    size=st.integers(1, 70),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 1000),
    strengths=st.sampled_from(
        [(0.2, 0.5, 15), (1, 1, 180), (0, 0.5, 0), (0.3, 0, 0), (0, 0, 90), (0.2, 0.5, 0, 0.4), (0, 0, 0, 1)]
    ),
)
def test_augmentation_on_a_gpu_gives_the_same_pixels(
    size: int, channels: int, seed: int, strengths: tuple[float, ...]
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (5, size, size, channels), dtype=np.uint8)
    augmentation = Augmentation(*strengths)
    changes = [augmentation.draw(np.random.default_rng([seed, number])) for number in range(5)]
    batch = augmentation.apply_to_batch(torch.from_numpy(images), torch.tensor(changes, dtype=torch.float64), size)
    one_by_one = [augmentation.apply(image, change, size) for image, change in zip(images, changes, strict=True)]
    assert np.array_equal(batch.numpy(), np.stack(one_by_one))


@settings(max_examples=40)
@given(
    side=st.integers(2, 70),
    size=st.integers(1, 70),
    channels=st.sampled_from([1, 3]),
    min_crop=st.sampled_from([0.1, 0.35, 1.0]),
    seed=st.integers(0, 1000),
)
def test_crops_on_a_gpu_give_the_same_pixels(side: int, size: int, channels: int, min_crop: float, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, side, side, channels), dtype=np.uint8)
    augmentation = Augmentation(0, 0.5, 0)
    changes = [augmentation.draw(np.random.default_rng([seed, number]), min_crop) for number in range(3)]
    batch = augmentation.apply_to_batch(torch.from_numpy(images), torch.tensor(changes, dtype=torch.float64), size)
    one_by_one = np.stack(
        [augmentation.apply(image, change, size) for image, change in zip(images, changes, strict=True)]
    )
    assert batch.shape == (3, size, size, channels)
    # Pillow computes in fixed point, so that either of the two passes may round to the other side.
    assert np.abs(batch.numpy().astype(int) - one_by_one).max() <= 2


def test_crops_have_the_stated_areas_and_lie_inside() -> None:
    augmentation = Augmentation(0, 0, 0)
    changes = [augmentation.draw(np.random.default_rng(number), 0.35) for number in range(2000)]
    areas = [change.width * change.height for change in changes]
    assert 0.35 <= min(areas) < 0.37
    assert 0.98 < max(areas) <= 1
    assert all(change.left >= 0 and change.left + change.width <= 1 + 1e-9 for change in changes)
    assert all(change.top >= 0 and change.top + change.height <= 1 + 1e-9 for change in changes)
    ratios = [change.width / change.height for change in changes]
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.34
    whole = Augmentation(0, 0, 0).draw(np.random.default_rng(0))
    assert whole[:4] == (0, 0, 1, 1)


def test_augmentation_can_be_left_to_the_gpu(pipeline: Pipeline) -> None:
    here = pipeline.batches(0, 0, whole_view)
    later = pipeline.batches(0, 0, whole_view, augment=False)
    for done, raw in zip(here, later, strict=True):
        assert done.changes is None
        assert raw.changes is not None
        assert torch.equal(pipeline.augmentation.apply_to_batch(raw.images, raw.changes, raw.size), done.images)


@pytest.mark.parametrize(
    ("number", "size", "parts"),
    [(16, 16, [16]), (17, 16, [17]), (16, 4, [4] * 4), (9, 4, [5, 4]), (3, 8, [3]), (1, 2, [1])],
)
def test_micro_batches_leave_no_image_alone(number: int, size: int, parts: list[int]) -> None:
    batch = Batch(torch.arange(number).view(-1, 1, 1, 1), torch.arange(number))
    assert [len(part) for part in batch.parts(size)] == parts
    assert torch.equal(torch.cat([part.labels for part in batch.parts(size)]), batch.labels)
