"""Training on data sets that Hugging Face datasets reads: stored, and streamed."""

import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import StopAt

from carnet import TrainingConfig, evaluate
from carnet.data.samples import Sample
from carnet.data.scan import hash_files
from carnet.data.stream import ImageStream, check_stream
from carnet.errors import ConfigError, DataError, RunError, StoppedError, UnreadableImagesError
from carnet.models.weights import load
from carnet.preprocess import load_image
from carnet.run_folder import RunFolder
from carnet.spec import ModelSpec
from carnet.text import Silent
from carnet.training.augment import Augmentation
from carnet.training.pipeline import Loaded, Pipeline, StreamedImages, pixel_loader
from carnet.training.run import TrainingResult, train
from carnet.training.schedule import View

pytest.importorskip("datasets")

RECIPE = {"model": "carnet_n", "image_size": 48, "epochs": 2, "batch_size": 8}


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def shards(photos: Path, folder: Path, *, splits: tuple[str, ...] = ("train", "valid"), spoil: bool = False) -> Path:
    """Two WebDataset shards of each split; with `spoil`, one training image cannot be decoded."""
    folder.mkdir()
    for split in splits:
        images = sorted((photos / split).rglob("*.jpg"))
        for part in (0, 1):
            with tarfile.open(folder / f"{split}-{part}.tar", "w") as tar:
                for number, image in enumerate(images[part::2]):
                    add(tar, f"{part}{number:03}.txt", image.parent.name.encode(), folder)
                    spoilt = spoil and (split, part, number) == ("train", 1, 5)
                    add(tar, f"{part}{number:03}.jpg", b"\xff\xd8\xff" if spoilt else image.read_bytes(), folder)
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes, folder: Path) -> None:
    path = folder / "member"
    path.write_bytes(content)
    tar.add(path, name)
    path.unlink()


def run_on(data: Path, run: Path, **changes: Any) -> TrainingResult:
    return train(data, TrainingConfig(**(RECIPE | changes)), output=run, progress=Silent())


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_stored_shards_train_like_any_table(photos: Path, tmp_path: Path) -> None:
    data = shards(photos, tmp_path / "shards")
    result = run_on(data, tmp_path / "run", epochs=1)
    assert result.document["num_images"] == {"train": 24, "valid": 12}
    assert load(tmp_path / "run").spec.classes == ("blue", "green", "red")
    assert evaluate(tmp_path / "run", data).top1 == result.top1


def test_streamed_stops_and_resumes_to_the_same_weights(photos: Path, tmp_path: Path) -> None:
    data = shards(photos, tmp_path / "shards")
    whole = run_on(data, tmp_path / "whole", stream=True)
    assert whole.document["num_images"] == {"train": 24, "valid": 12}
    for moment in (("epoch 1/2", 2), ("epoch 2/2", 1)):
        run = tmp_path / f"run{moment[1]}"
        with pytest.raises(StoppedError):
            train(data, TrainingConfig(stream=True, **RECIPE), output=run, progress=StopAt(*moment))
        train(resume=run, config=TrainingConfig(stream=True, workers=0, **RECIPE), progress=Silent())
        assert weights(run) == weights(tmp_path / "whole")
    stored = run_on(data, tmp_path / "stored")
    # The same images under the same names, in another order.
    assert RunFolder(stored.run).digests() == RunFolder(whole.run).digests()
    assert weights(stored.run) != weights(whole.run)
    assert (stored.run / "data.csv").read_bytes() == (whole.run / "data.csv").read_bytes()


def test_every_image_is_streamed_once_an_epoch_and_augmented_alike(photos: Path, tmp_path: Path) -> None:
    stream = ImageStream(str(shards(photos, tmp_path / "shards")))
    checked = check_stream(stream, image_size=48, ignore=("images/train/0000003.jpg",))
    train = checked.data.splits["train"]
    assert (len(train), len(checked.data.ignored)) == (23, 1)
    pipeline = streamed(stream, train)

    def places(epoch: int, first_step: int, rank: int) -> list[int]:
        return [item.place for items in pipeline.items(epoch, first_step, rank, 2) for item in items]

    whole = places(0, 0, 0)
    assert sorted(whole + places(0, 0, 1)) == [number for number in range(24) if number != 3]
    assert places(0, 2, 0) == whole[6:]
    assert places(1, 2, 0) != whole[6:]


def streamed(stream: ImageStream, train: Sequence[Sample], batch_size: int = 6) -> Pipeline:
    spec = ModelSpec(model="carnet_s", classes=stream.classes, image_size=48)
    images = StreamedImages(stream.source, train, stream.classes, seed=0)
    return Pipeline(images, pixel_loader(None, spec), Augmentation(0.2, 0.5, 15), 5, batch_size)


def test_streamed_images_keep_their_labels_and_change_with_the_epoch(photos: Path, tmp_path: Path) -> None:
    stream = ImageStream(str(shards(photos, tmp_path / "shards")))
    spec = ModelSpec(model="carnet_s", classes=stream.classes, image_size=48)
    train = check_stream(stream, image_size=48, ignore=()).data.splits["train"]
    pipeline = streamed(stream, train, batch_size=24)
    there = {image.position: image for image in stream.read("train", order=None)}
    (items,), (batch,) = pipeline.items(1, 0), pipeline.batches(1, 0, lambda _: View(48))
    assert len(items) == len(there) == 24
    for item, pixels, label in zip(items, batch.images.numpy(), batch.labels.tolist(), strict=True):
        assert stream.classes[label] == there[item.place].label
        loaded = Loaded(load_image(there[item.place].content, spec), label, item.place)
        assert np.array_equal(pixels, pipeline.changed([loaded], 1, View(48)).images[0].numpy())


def test_without_a_valid_split_some_are_held_back(photos: Path, tmp_path: Path) -> None:
    data = shards(photos, tmp_path / "shards", splits=("train",))
    result = run_on(data, tmp_path / "run", epochs=1, stream=True)
    assert result.document["num_images"] == {"train": 18, "valid": 6}
    assert evaluate(tmp_path / "run", data).num_leaked == 0
    stored = run_on(data, tmp_path / "stored", epochs=1)
    assert RunFolder(stored.run).digests() == RunFolder(result.run).digests()


def test_other_images_in_shards_of_the_same_size(photos: Path, tmp_path: Path) -> None:
    data = shards(photos, tmp_path / "shards")

    def kept() -> dict[str, str]:
        checked = check_stream(ImageStream(str(data)), image_size=48, ignore=("none.jpg",))
        assert any("'none.jpg'" in warning for warning in checked.warnings)
        valid = checked.data.splits["valid"]
        assert hash_files([s.path for s in valid]) == {s.path: checked.facts[s.path].sha256 for s in valid}
        return {s.path.name: checked.facts[s.path].sha256 for s in valid}

    before = kept()
    # Another bit in an image, which leaves all sizes as they are.
    shard = data / "valid-1.tar"
    content = bytearray(shard.read_bytes())
    place = content.index(b"\xff\xd9") - 40
    content[place] ^= 1
    shard.write_bytes(bytes(content))
    assert kept() != before


def test_an_unreadable_image_in_a_stream(photos: Path, tmp_path: Path) -> None:
    data = shards(photos, tmp_path / "shards", spoil=True)
    with pytest.raises(UnreadableImagesError, match=r"1 of 36 .*\n  .*images/train/\d{7}\.jpg: "):
        run_on(data, tmp_path / "run", stream=True)
    result = run_on(data, tmp_path / "run", epochs=1, stream=True, skip_unreadable=True).document
    assert (result["num_images"]["train"], result["num_skipped_unreadable"]) == (23, 1)


def test_what_has_changed_is_noticed(photos: Path, tmp_path: Path) -> None:
    data = shards(photos, tmp_path / "shards")
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(data, TrainingConfig(stream=True, **RECIPE), output=run, progress=StopAt("epoch 1/2", 1))
    shutil.copy(data / "valid-1.tar", data / "valid-2.tar")
    with pytest.raises(RunError, match="images"):
        train(resume=run, progress=Silent())
    shutil.rmtree(data)
    with pytest.raises(DataError, match=re.escape(str(data))):
        train(resume=run, progress=Silent())
    with pytest.raises(ConfigError, match=f"--stream .*{re.escape(str(photos))}"):
        run_on(photos, tmp_path / "x", stream=True)


@pytest.mark.usefixtures("quick_processes")
def test_two_processes_share_a_stream(photos: Path, tmp_path: Path) -> None:
    data = shards(photos, tmp_path / "shards")
    result = run_on(data, tmp_path / "run", epochs=1, stream=True, devices=2)
    assert result.document["num_images"] == {"train": 24, "valid": 12}
    assert result.report.num_images == 12
