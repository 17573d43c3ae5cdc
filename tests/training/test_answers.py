"""A teacher's answers: which crop is shown, how they are read, mixed and learned from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from carnet.documents import DocumentError
from carnet.models.tensors import pack
from carnet.training.answers import TEMPERATURE, Answers
from carnet.training.pipeline import Batch, cut_mix
from carnet.training.step import cross_entropy


def test_crops_are_shown_in_turn_and_the_whole_at_the_end() -> None:
    scores = np.arange(3 * 2 * 4).reshape(3, 2, 4).astype(np.float16)
    boxes = np.random.default_rng(0).random((3, 2, 4)).astype(np.float32)
    answers = Answers(scores, boxes, np.arange(1, 7).reshape(2, 3).astype(np.float16), min_crop=0.25)
    seen = [answers.for_image(1, epoch, 0.25).box for epoch in range(4)]
    assert seen[0] == seen[2] != seen[1] == seen[3]
    assert set(seen) == {tuple(boxes[view, 1].tolist()) for view in (1, 2)}
    answer = answers.for_image(1, 0, 0.9)
    assert answer.box is None
    assert answer.features.tolist() == [4, 5, 6]
    assert answer.probabilities.sum() == pytest.approx(1)


def test_answers_are_read_as_they_were_written_or_refused() -> None:
    rng = np.random.default_rng(0)
    scores, boxes = rng.normal(size=(3, 2, 4)).astype(np.float16), np.full((3, 2, 4), 0.25, np.float32)
    features = rng.normal(size=(2, 5)).astype(np.float16)
    again = Answers.unpack(Answers(scores, boxes, features, 0.25).pack(), num_images=2, num_classes=4)
    assert (again.min_crop, again.scores.tolist(), again.boxes.tolist()) == (0.25, scores.tolist(), boxes.tolist())
    assert again.features.tolist() == features.tolist()
    wrong = [
        Answers(scores[:, :1], boxes[:, :1], features, 0.25),
        Answers(scores[..., :2], boxes, features, 0.25),
        Answers(scores[:2], boxes, features, 0.25),
        Answers(scores, boxes * 4, features, 0.25),
        Answers(scores * np.float16(np.nan), boxes, features, 0.25),
        Answers(scores.astype(np.float32), boxes, features, 0.25),  # type: ignore[arg-type]
        Answers(scores, boxes, features, 7.0),
        Answers(scores, boxes, features[:1], 0.25),
        Answers(scores, boxes, features[0], 0.25),
        Answers(scores, boxes, features * np.float16(np.nan), 0.25),
        Answers(scores, boxes, features.astype(np.float32), 0.25),  # type: ignore[arg-type]
    ]
    for answers in wrong:
        with pytest.raises(DocumentError):
            Answers.unpack(answers.pack(), num_images=2, num_classes=4)
    with pytest.raises(DocumentError):
        Answers.unpack(pack({}, {}), num_images=2, num_classes=4)


def batch_of(number: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 8, 8, 3), generator=rng, dtype=torch.uint8)
    answers, features = torch.rand(number, 4, generator=rng).softmax(1), torch.rand(number, 5, generator=rng)
    return Batch(images, torch.arange(number) % 4, size=8, answers=answers, features=features)


def test_answers_replace_labels() -> None:
    batch, logits = batch_of(), torch.randn(6, 4)
    assert batch.answers is not None
    expected = -(batch.answers * F.log_softmax(logits / TEMPERATURE, 1)).sum(1).mean()
    assert torch.allclose(cross_entropy(logits, batch, 0.1), expected)


def test_answers_are_mixed_as_images_are_and_stay_with_them() -> None:
    batch = batch_of()
    mixed = cut_mix(batch, 1.0, np.random.default_rng(1))
    assert 0 < mixed.label_share < 1
    parts = list(mixed.parts(3))
    for name in ("answers", "features"):
        before, after = getattr(batch, name), getattr(mixed, name)
        assert torch.allclose(after, mixed.label_share * before + (1 - mixed.label_share) * before.roll(1, 0))
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), after)
