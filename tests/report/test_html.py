"""A page is complete, safe and correct, whatever the classes and files are called."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carnet.data.samples import Sample
from carnet.evaluation import EvaluationReport
from carnet.report.findings import findings
from carnet.report.html import evaluation_html, render

SORT_SCRIPT = resources.files("carnet.report").joinpath("sort.js").read_text("utf-8")
VOID = {"meta", "img"}
BLOCKS = {"dt", "dd", "p", "li", "td", "th", "div", "span", "h1", "h2"}
NASTY = (
    "<b>\"x\" & 'y'</b>",
    "</script><img src=x onerror=alert(1)>",
    "--></style><script>alert(1)</script>",
    "&amp;",
    "very long name " * 20,
    "new\nline\x00\x1b",
    "\udcff not a character",
)


class Page(HTMLParser):
    """The elements of a page with their attributes and texts; every element has to be closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in BLOCKS:
            self.texts.append(("", " "))

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self):
        kept = (data for tag, data in self.texts if tag not in ("style", "script", "title"))
        return re.sub(r"\s+", " ", "".join(kept))

    def images(self):
        """Return the images inside the page, decoded."""
        sources = [attrs["src"] for tag, attrs in self.elements if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def make_report(labels, predictions, classes, *, paths=None, leaked=None, confidence=None):
    labels, num_images = np.asarray(labels), len(labels)
    logits = np.zeros((num_images, len(classes)), dtype=np.float32)
    logits[np.arange(num_images), predictions] = 3 if confidence is None else confidence
    return EvaluationReport(
        classes=tuple(classes),
        samples=tuple(
            Sample(Path(paths[i] if paths else f"/nowhere/{i}.jpg"), int(label)) for i, label in enumerate(labels)
        ),
        labels=labels.astype(np.int64),
        logits=logits,
        leaked=np.zeros(num_images, dtype=np.bool_) if leaked is None else np.asarray(leaked),
        leaks_known=leaked is not None,
    )


def page_of(report, **options):
    return Page(evaluation_html(report, **{"title": "A title", **options}))


TWO = make_report([0] * 10 + [1] * 10, [0] * 9 + [1] * 11, ("cat", "dog"))


def test_sections_come_in_order():
    history = [{"epoch": 1, "train_loss": 1.0, "valid_loss": 1.0, "train_top1": 0.5, "valid_top1": 0.5}]
    html = evaluation_html(TWO, title="A title", facts=[("model", "m")], history=history, notes=["A note."])
    headings = re.findall(r"<h[12]>(.*?)</h[12]>", html)
    assert headings == [
        "A title",
        "Findings",
        "Training curves",
        "Confusion matrix",
        "Most confident mistakes",
        "Results per class",
        "Details",
        "Notes",
    ]
    short = evaluation_html(TWO, title="A title")
    assert re.findall(r"<h2>(.*?)</h2>", short) == [*headings[1:2], *headings[3:6]]


def test_headline_numbers():
    text = page_of(TWO).text()
    assert "Top-1 accuracy 95.0% 19 of 20 images correct; 95% interval 76.4% to 99.1%" in text
    assert "macro F1 95.0%" in text
    assert "images 20" in text
    assert "seen in training not known" in text
    assert "top-5" not in text
    six = make_report([4] * 6, range(6), "abcdef")
    assert "top-5 accuracy 83.3%" in page_of(six).text()


def test_the_bar_stands_where_the_numbers_say():
    (track,) = [a["style"] for tag, a in page_of(TWO).elements if tag == "i"]
    (mark,) = [a["style"] for tag, a in page_of(TWO).elements if tag == "b"]
    assert track == "left:76.39%;width:22.72%"
    assert mark == "left:95.00%"


def test_leaked_images_are_prominent_when_there_are_any():
    leaked = np.arange(20) < 4
    page = page_of(make_report([0] * 10 + [1] * 10, [0] * 9 + [1] * 11, ("cat", "dog"), leaked=leaked))
    assert re.search(r"4 of 20 images .* without them: 93\.8%", page.text())
    assert ("p", {"class": "warning"}) in page.elements
    none = page_of(make_report([0, 1], [0, 1], ("cat", "dog"), leaked=[False, False]))
    assert "seen in training 0" in none.text()
    assert ("p", {"class": "warning"}) not in none.elements
    everything = page_of(make_report([0, 1], [0, 1], ("cat", "dog"), leaked=[True, True])).text()
    assert "2 of 2 images" in everything
    assert "without them" not in everything


def test_no_name_becomes_markup():
    num = len(NASTY)
    paths = [f"/data/{k}/<img src=x onerror=alert({k})>.jpg" for k in range(3 * num)]
    labels = np.repeat(np.arange(num), 3)
    nasty = make_report(labels, (labels + np.arange(3 * num) % 3) % num, NASTY, paths=paths)
    plain = make_report(labels, nasty.predictions, [f"class {k}" for k in range(num)])
    texts = {"facts": [(name, name) for name in NASTY], "notes": NASTY}
    html = evaluation_html(nasty, title=NASTY[2], **texts)
    html.encode("utf-8")
    page = Page(html)
    plain_page = page_of(plain, facts=[("a", "b")] * num, notes=["c"] * num)
    # The same elements with the same attributes; only sizes depend on the lengths of names.
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain_page.elements]
    assert {key for _, attrs in page.elements for key in attrs} == {
        key for _, attrs in plain_page.elements for key in attrs
    }
    assert "<b>\"x\" & 'y'</b>" in page.text()
    assert "alert(1)" in page.text()
    assert [data for tag, data in page.texts if tag == "script"] == [SORT_SCRIPT]
    assert "\x00" not in html


def test_no_text_of_any_kind_becomes_markup():
    texts = {"sentences": NASTY, "columns": NASTY, "lines": [NASTY]}
    document = {
        "images": {"data": dict.fromkeys(NASTY, 1), "count": 1, "unseen": False},
        "runs": [{"device": name} for name in NASTY],
        "machine": NASTY[1],
        "versions": {name: name for name in NASTY},
    }
    Image.new("L", (1, 1)).save(figure := io.BytesIO(), "PNG")
    page = Page(render("comparison", title=NASTY[1], figure=figure.getvalue(), document=document, **texts))
    assert sum(tag in ("b", "img", "script") for tag, _ in page.elements) == 2
    # Two of the names have it: in each list once, in the versions twice; the heading and the machine are one of them.
    assert page.text().count("alert(1)") == 2 * 5 + 2 * 2 + 2
    assert not {"\x00", "\x1b", "\udcff"} & set(page.text())


def test_nothing_comes_from_outside(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (50, 40), "red").save(path)
    html = evaluation_html(
        make_report([0, 1], [1, 1], ("https://example.org/a.png", "b"), paths=[path, path]),
        title="t",
        history=[{"epoch": 1, "train_loss": 1.0}],
    )
    page = Page(html)
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "a", "use", "image")
        assert not attrs.keys() & {"href", "srcset", "action", "data", "poster", "background"}
        assert attrs.get("src", "data:image/").startswith(
            ("data:image/png;base64,", "data:image/jpeg;base64,", "data:image/")
        )
        assert not any(key.startswith("on") for key in attrs)
    style = "".join(data for tag, data in page.texts if tag == "style")
    assert style
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"https?:|fetch|import|innerHTML", SORT_SCRIPT)
    (policy,) = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_thumbnails_are_small_upright_and_bare(tmp_path):
    wide, tiny = tmp_path / "wide.jpg", tmp_path / "tiny.png"
    image = Image.new("RGB", (640, 320), "blue")
    image.paste("red", (0, 0, 320, 320))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: the left of the stored image belongs on top
    image.save(wide, exif=exif, comment=b"secret place")
    Image.new("L", (3, 5), 128).save(tiny)
    html = evaluation_html(make_report([0, 0], [1, 1], ("a", "b"), paths=[wide, tiny]), title="t")
    first, second = Page(html).images()
    assert first.format == second.format == "JPEG"
    assert first.size == (80, 160)
    assert second.size == (3, 5)
    assert np.abs(np.array(first.getpixel((40, 20))) - (255, 0, 0)).max() < 30
    assert np.abs(np.array(first.getpixel((40, 140))) - (0, 0, 255)).max() < 30
    assert not first.getexif()
    assert "comment" not in first.info


def test_an_image_that_cannot_be_opened_is_a_placeholder_with_its_reason(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image at all")
    page = page_of(make_report([0, 0], [1, 1], ("a", "b"), paths=[tmp_path / "gone.jpg", broken]))
    assert not page.images()
    # Each in place of its image, with the reason.
    assert all(name in page.text() for name in ("gone.jpg", "broken.jpg", "no such file", "JPEG"))
    assert str(tmp_path) not in page.text()


def test_gallery_holds_the_most_confident_mistakes_and_at_most_24():
    confidence = np.arange(40) % 7 + 1.0
    page = page_of(make_report([0] * 40, [1] * 40, ("cat", "dog"), confidence=confidence))
    assert sum(attrs == {"class": "picture"} for _, attrs in page.elements) == 24
    assert "The 24 most confident of 40 mistakes" in page.text()
    shown = re.findall(r"dog (\d+\.\d)% is cat (\d+)\.jpg", page.text())
    assert shown[0] == ("99.9", "6")
    assert [float(share) for share, _ in shown] == sorted((float(share) for share, _ in shown), reverse=True)
    assert not page_of(make_report([0, 1], [0, 1], ("cat", "dog"))).images()


def rows_of(report):
    body = re.search(r"<tbody>(.*)</tbody>", evaluation_html(report, title="t"), re.DOTALL)[1]
    rows = re.findall(r"<tr(.*?)>(.*?)</tr>", body, re.DOTALL)
    return [(style, [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)]) for style, row in rows]


def test_class_table_is_sorted_worst_first_with_blanks_where_nothing_is_known():
    labels = [0] * 30 + [1] * 10 + [2] * 20
    predictions = [0] * 30 + [1] * 5 + [0] * 5 + [0] * 20
    few = ' class="few"'
    assert rows_of(make_report(labels, predictions, ("good", "fair", "never said", "absent"))) == [
        ("", ["never said", "20", "", "0.0%", "0.0%"]),
        (few, ["fair", "10", "100.0%", "50.0%", "66.7%"]),
        ("", ["good", "30", "54.5%", "100.0%", "70.6%"]),
        (few, ["absent", "0", "", "", ""]),
    ]


def test_a_class_without_images_can_still_be_said_wrongly():
    rows = rows_of(make_report([0, 0], [0, 1], ("here", "absent")))
    assert rows[-1][1] == ["absent", "0", "0.0%", "", "0.0%"]


def test_facts_notes_and_the_findings_are_there():
    page = page_of(TWO, facts=[("model", "carnet18"), ("size", "3 < 5 MB")], notes=["First & last."])
    assert "model carnet18 size 3 < 5 MB".replace(" ", "") in page.text().replace(" ", "")
    assert "First & last." in page.text()
    assert findings(TWO)[0] in page.text()


def test_curves_are_embedded_as_png():
    history = [{"epoch": k, "train_loss": 1.0, "valid_top1": 0.5} for k in (1, 2)]
    assert page_of(make_report([0, 1], [0, 1], ("a", "b")), history=history).images()[0].format == "PNG"


def test_the_same_report_is_the_same_page():
    assert evaluation_html(TWO, title="t") == evaluation_html(TWO, title="t")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_model_still_gets_its_page(value):
    report = make_report([0, 1], [0, 1], ("a", "b"))
    report.logits[0, 0] = value
    assert findings(report)[0] in page_of(report).text()


def test_two_hundred_classes_make_a_page_of_moderate_size():
    labels = np.repeat(np.arange(200), 20)
    predictions = np.where(np.arange(4000) % 3 == 0, (labels * 7 + np.arange(4000)) % 200, labels)
    report = make_report(labels, predictions, [f"species number {k}" for k in range(200)])
    assert len(evaluation_html(report, title="t")) < 500_000
