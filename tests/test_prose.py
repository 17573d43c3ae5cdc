"""The script that counts the prose counts what it says."""

from __future__ import annotations

from pathlib import Path

from prose import count

TEST = """
def test(monkeypatch):
    monkeypatch.setattr(module, "clock", None)
    with pytest.raises(DataError, match="photos/a.jpg"):
        pass
    with pytest.raises(DataError, match="is no image"):
        pass
"""


def test_each_kind_is_counted_once(tmp_path: Path) -> None:
    files = {
        "README.md": "It shall judge 97.7 % of five words.",
        "docs/data.md": "97.7% of them.",
        "carnet/text.py": '"""Mend what is broken."""\nprint(f"{share:.1f} %", "%d" % 1)\n',
        "tests/test_text.py": TEST,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    counts = count(tmp_path)
    assert counts["dialect words in the documents"] == 2
    assert counts["dialect words in the package"] == 1
    assert counts["blanks before a percent sign, package and documents"] == 2
    assert counts["errors asserted by a sentence"] == 1
    assert counts["attributes replaced by tests"] == 1
    assert counts["words of README.md"] == 8
    assert counts["words of all documents"] == 11
    assert counts["places"].count("README.md:1") == 3
