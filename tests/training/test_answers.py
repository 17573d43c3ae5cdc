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
    answers = Answers(scores, boxes, min_crop=0.25)
    seen = [answers.for_image(1, epoch, 0.25)[0] for epoch in range(4)]
    assert seen[0] == seen[2] != seen[1] == seen[3]
    assert set(seen) == {tuple(boxes[view, 1].tolist()) for view in (1, 2)}
    box, shares = answers.for_image(1, 0, 0.9)
    assert box is None
    assert shares.sum() == pytest.approx(1)


def test_answers_are_read_as_they_were_written_or_refused() -> None:
    rng = np.random.default_rng(0)
    scores, boxes = rng.normal(size=(3, 2, 4)).astype(np.float16), np.full((3, 2, 4), 0.25, np.float32)
    content = Answers(scores, boxes, min_crop=0.25).pack()
    again = Answers.unpack(content, num_images=2, num_classes=4)
    assert (again.min_crop, again.scores.tolist(), again.boxes.tolist()) == (0.25, scores.tolist(), boxes.tolist())
    wrong = [
        Answers(scores[:, :1], boxes[:, :1], 0.25),
        Answers(scores[..., :2], boxes, 0.25),
        Answers(scores[:2], boxes, 0.25),
        Answers(scores, boxes * 4, 0.25),
        Answers(scores * np.float16(np.nan), boxes, 0.25),
        Answers(scores.astype(np.float32), boxes, 0.25),  # type: ignore[arg-type]
        Answers(scores, boxes, 7.0),
    ]
    for answers in wrong:
        with pytest.raises(DocumentError):
            Answers.unpack(answers.pack(), num_images=2, num_classes=4)
    with pytest.raises(DocumentError):
        Answers.unpack(pack({}, {}), num_images=2, num_classes=4)


def batch_of(number: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 8, 8, 3), generator=rng, dtype=torch.uint8)
    answers = torch.rand(number, 4, generator=rng).softmax(1)
    return Batch(images, torch.arange(number) % 4, size=8, answers=answers)


def test_answers_replace_labels() -> None:
    batch, logits = batch_of(), torch.randn(6, 4)
    assert batch.answers is not None
    expected = -(batch.answers * F.log_softmax(logits / TEMPERATURE, 1)).sum(1).mean()
    assert torch.allclose(cross_entropy(logits, batch, 0.1), expected)


def test_answers_are_mixed_as_images_are_and_stay_with_them() -> None:
    batch = batch_of()
    mixed = cut_mix(batch, 1.0, np.random.default_rng(1))
    assert batch.answers is not None
    assert mixed.answers is not None
    assert 0 < mixed.label_share < 1
    expected = mixed.label_share * batch.answers + (1 - mixed.label_share) * batch.answers.roll(1, 0)
    assert torch.allclose(mixed.answers, expected)
    parts = list(mixed.parts(3))
    assert torch.equal(torch.cat([part.answers for part in parts if part.answers is not None]), mixed.answers)
