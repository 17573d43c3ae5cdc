"""Classify a folder of photos with Ray Data: on the cores of this machine, or on a cluster's.

  pip install carnet "ray[data]"
  python examples/ray_predict.py model.onnx photos answers --workers 2

ANSWERS gets CSV files: the path of each photo, its class and probability, or why it cannot be read. A photo is read and
decoded where it is classified; only its path and its answer travel, and this process holds the list of paths. With a
cluster, MODEL, PHOTOS and ANSWERS are on storage that every machine sees.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import ray

import carnet
from carnet.data.folder import images_in
from carnet.errors import ImageError

Batch = dict[str, Any]


class Classify:
    """One worker: a model on one thread."""

    def __init__(self, model: str) -> None:
        self.model = carnet.load(model, threads=1)

    def __call__(self, batch: Batch) -> Batch:
        """Paths -> paths, classes, probabilities, errors."""
        answers = list(self.model.predict_many(batch["item"]))
        failed = [isinstance(answer, ImageError) for answer in answers]
        return {
            "path": batch["item"],
            "class": np.array(["" if bad else answer.label for answer, bad in zip(answers, failed, strict=True)]),
            "probability": np.array(
                [0 if bad else answer.probability for answer, bad in zip(answers, failed, strict=True)]
            ),
            "error": np.array([answer.reason if bad else "" for answer, bad in zip(answers, failed, strict=True)]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported model")
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("answers", type=Path, help="new folder for the CSV files")
    parser.add_argument("--workers", type=int, default=2, help="processes that classify, one core each")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    paths = [str(path.resolve()) for path in images_in(options.photos)]
    photos = ray.data.from_items(
        paths, override_num_blocks=min(len(paths), max(4 * options.workers, len(paths) // 2000))
    )
    classified = photos.map_batches(
        Classify,
        fn_constructor_args=[str(options.model.resolve())],
        batch_size=options.batch_size,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=1,
    )
    classified.write_csv(str(options.answers.resolve()))


if __name__ == "__main__":
    main()
