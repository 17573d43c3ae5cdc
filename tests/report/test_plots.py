"""The curves show both lines and their gaps; the confusion matrix is well-formed and complete."""

from __future__ import annotations

import io
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from children import finished
from PIL import Image

from carnet.data.samples import Sample
from carnet.evaluation import EvaluationReport
from carnet.report.plots import best_epoch, draw_batch, draw_confusion, draw_curves

SVG = "{http://www.w3.org/2000/svg}"
TRAIN_RGB, VALID_RGB, INK_RGB = (0xC8, 0x7A, 0x38), (0x1B, 0x4F, 0x72), (0x1D, 0x23, 0x29)
NAN = math.nan


def make_history(num_epochs, **columns):
    """Make epochs that improve; given columns replace the made-up ones."""
    rows = []
    for k in range(num_epochs):
        done = (k + 1) / num_epochs
        row = {"epoch": k + 1, "seconds": 9.0, "lr": 0.1, "train_loss": 2 - done, "valid_loss": 2.2 - done}
        row |= {"train_top1": 0.7 * done, "valid_top1": 0.8 * done, "valid_top5": 0.9}
        rows.append(row | {key: values[k] for key, values in columns.items()})
    return rows


def make_report(confusion, classes=None):
    confusion = np.asarray(confusion)
    labels, predictions = (np.repeat(cells, confusion.ravel()) for cells in np.indices(confusion.shape).reshape(2, -1))
    return EvaluationReport(
        classes=tuple(classes or (f"class {k}" for k in range(len(confusion)))),
        samples=tuple(Sample(Path(f"{i}.jpg"), int(label)) for i, label in enumerate(labels)),
        labels=labels.astype(np.int64),
        logits=np.eye(len(confusion), dtype=np.float32)[predictions],
        leaked=np.zeros(len(labels), dtype=np.bool_),
    )


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.size == (1650, 690)
        return np.asarray(image.convert("RGB")).astype(int)


def count_colour(image, rgb):
    return int((np.abs(image - rgb).max(axis=2) < 8).sum())


@pytest.mark.parametrize(("number", "channels"), [(1, 3), (4, 1), (16, 4), (9, 3)])
def test_a_batch_shows_each_image_in_its_place(number, channels):
    colours = np.linspace(40, 220, number).astype(np.uint8)
    images = np.broadcast_to(colours[:, None, None, None], (number, 32, 32, channels)).copy()
    if channels == 4:
        images[..., 3] = 255
    png = draw_batch(images, ["$x_{$ 日本 " + "long " * 20 + "\x00"] * number)
    with Image.open(io.BytesIO(png)) as image:
        drawn = np.asarray(image.convert("L")).astype(int)
    rows = math.ceil(number / 4)
    assert drawn.shape == (330 * rows, 1200)
    for place, colour in enumerate(colours.tolist()):
        row, column = divmod(place, 4)
        assert abs(drawn[330 * row + 190, 300 * column + 150] - colour) < 4


@pytest.mark.parametrize("num_epochs", [1, 2, 30, 500])
def test_curves_show_both_lines_in_both_panels(num_epochs):
    image = pixels(draw_curves(make_history(num_epochs), title="a run"))
    for half in (image[:, :825], image[:, 825:]):
        # The label beside a line has fewer pixels of its colour; a single epoch is a dot.
        assert count_colour(half, TRAIN_RGB) > 40
        assert count_colour(half, VALID_RGB) > 40


def test_curves_without_validation_show_no_validation():
    history = make_history(5, valid_loss=[NAN] * 5, valid_top1=[NAN] * 5)
    image = pixels(draw_curves(history))
    assert count_colour(image, VALID_RGB) == 0
    assert count_colour(image, TRAIN_RGB) > 100
    missing = [{key: value for key, value in row.items() if not key.startswith("valid")} for row in history]
    assert draw_curves(missing) == draw_curves(history)


def test_a_value_between_two_gaps_is_a_dot():
    alone = make_history(9, valid_top1=[NAN] * 4 + [0.5] + [NAN] * 4)
    # Look left of the labels. In the accuracy panel the ring of the best epoch has the line's colour too.
    alone_loss = make_history(9, valid_loss=[NAN] * 4 + [1.5] + [NAN] * 4)
    assert count_colour(pixels(draw_curves(alone))[:, 900:1470], VALID_RGB) > 20
    assert count_colour(pixels(draw_curves(alone_loss))[:, 100:640], VALID_RGB) > 20


def test_gaps_and_infinities_are_drawn_as_gaps():
    losses = [math.inf, NAN, 3.0, -math.inf, 2.0]
    as_gaps = [NAN, NAN, 3.0, NAN, 2.0]
    infinite, missing = ({"train_loss": values, "valid_loss": values} for values in (losses, as_gaps))
    assert draw_curves(make_history(5, **infinite)) == draw_curves(make_history(5, **missing))
    nothing = {key: [NAN] * 3 for key in ("train_loss", "valid_loss", "train_top1", "valid_top1")}
    assert count_colour(pixels(draw_curves(make_history(3, **nothing))), TRAIN_RGB) == 0


def test_high_accuracies_fill_the_panel():
    """On an axis from 0%, a curve between 97% and 99% would be a flat line at the top."""
    history = make_history(10, train_top1=np.linspace(0.97, 0.98, 10), valid_top1=np.linspace(0.972, 0.99, 10))
    panel = pixels(draw_curves(history))[:, 900:1460]
    rows = np.flatnonzero((np.abs(panel - TRAIN_RGB).max(axis=2) < 8).any(axis=1))
    assert rows.min() > 690 * 0.15
    assert rows.max() - rows.min() > 40


def test_any_text_can_be_a_title():
    assert count_colour(pixels(draw_curves(make_history(2), title="$x_{$ 日本 \x00 \udcff"))[:70], INK_RGB) > 40


def test_curves_are_the_same_bytes_each_time():
    assert draw_curves(make_history(4)) == draw_curves(make_history(4))


def test_curves_need_an_epoch():
    with pytest.raises(ValueError, match="epochs"):
        draw_curves([])


def test_best_epoch_is_the_one_whose_weights_are_kept():
    assert best_epoch(make_history(4, valid_top1=[0.5, 0.9, NAN, 0.8])) == 1
    tie = make_history(4, valid_top1=[0.5, 0.9, 0.9, 0.9], valid_loss=[1.0, NAN, 0.7, 0.8])
    assert best_epoch(tie) == 2
    assert best_epoch(make_history(2, valid_top1=[NAN, NAN])) is None


def test_matplotlib_is_imported_when_drawing_and_pyplot_never():
    code = (
        "import sys; from carnet.report.plots import draw_curves; assert 'matplotlib' not in sys.modules;"
        "draw_curves([{'epoch': 1}]); assert 'matplotlib' in sys.modules;"
        "assert 'matplotlib.pyplot' not in sys.modules; assert 'torch' not in sys.modules"
    )
    finished([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("num_classes", [2, 12, 25, 26, 60, 61, 200])
def test_confusion_has_a_cell_for_every_count(num_classes):
    rng = np.random.default_rng(num_classes)
    confusion = rng.poisson(0.2, (num_classes, num_classes)) + 5 * np.eye(num_classes, dtype=int)
    confusion[1] = 0
    confusion[0, 1] = 3
    root = ET.fromstring(draw_confusion(make_report(confusion)))
    cells = root.findall(f".//{SVG}rect")
    assert len(cells) == np.count_nonzero(confusion)
    titles = [cell.findtext(f"{SVG}title") for cell in cells]
    total = confusion[0].sum()
    assert f"3 of {total} class 0 called class 1" in titles
    assert f"class 0: {confusion[0, 0]} of {total} right" in titles
    texts = [text.text for text in root.iter(f"{SVG}text")]
    shown = sorted(text for text in texts if text.isdigit())
    assert shown == (sorted(str(n) for n in confusion[confusion > 0]) if num_classes <= 25 else [])
    assert texts.count("class 1") == (2 if num_classes <= 60 else 0)


def test_cells_lie_inside_the_drawing_and_at_their_place():
    root = ET.fromstring(draw_confusion(make_report([[5, 0, 2], [0, 5, 0], [0, 0, 5]])))
    width, height = (float(root.get(side)) for side in ("width", "height"))
    (cell,) = root.findall(f".//{SVG}g[@class='misses']/{SVG}rect")
    x, y, side = (float(cell.get(key)) for key in ("x", "y", "width"))
    assert (x, y) == (2 * side, 0)
    assert 3 * side < width < 6 * side
    assert 3 * side < height < 6 * side


def test_the_larger_share_is_the_stronger_colour():
    root = ET.fromstring(draw_confusion(make_report([[60, 1, 39], [0, 100, 0], [0, 0, 1]])))
    opacity = {cell.findtext(f"{SVG}title"): float(cell.get("fill-opacity")) for cell in root.iter(f"{SVG}rect")}
    assert opacity["class 1: 100 of 100 right"] == 1 == opacity["class 2: 1 of 1 right"]
    assert opacity["class 0: 60 of 100 right"] < 0.7
    assert 0.1 < opacity["1 of 100 class 0 called class 1"] < opacity["39 of 100 class 0 called class 2"] < 0.8


def test_any_name_is_well_formed_and_whole_on_hover():
    names = ("<b>\"x\" & 'y'</b>", "]]>", "very long " * 30, "日本語" * 30, "new\nline \x00\x1b\udcff\ufffe", "&amp;")
    root = ET.fromstring(draw_confusion(make_report(3 * np.eye(6, dtype=int), names)))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    for name in (*names[:4], names[5]):
        assert f"{name}: 3 of 3 right" in titles
        assert titles.count(f"{name} (3 images)") == 2
    assert float(root.get("width")) < 700
    assert not {element.tag for element in root.iter()} - {
        f"{SVG}{tag}" for tag in ("svg", "g", "path", "rect", "text", "title")
    }


def test_two_hundred_classes_stay_small():
    rng = np.random.default_rng(0)
    confusion = 35 * np.eye(200, dtype=int)
    np.add.at(confusion, (np.repeat(np.arange(200), 15), rng.integers(0, 200, 3000)), 1)
    assert len(draw_confusion(make_report(confusion))) < 700_000
