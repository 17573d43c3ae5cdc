"""The Python of docs/serve.md works as printed."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from children import finished

ROOT = Path(__file__).parents[2]
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_python_of_the_document(number: int, exported: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(exported, tmp_path / "model.onnx")
    for name, path in zip("abc", sorted(photos.rglob("*.jpg")), strict=False):
        shutil.copy(path, tmp_path / f"{name}.jpg")
    (tmp_path / "program.py").write_text(PROGRAMS[number])
    ended = finished([sys.executable, "program.py"], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    if "print" in PROGRAMS[number]:
        assert len(re.findall("blue|green|red", ended.stdout)) == 3


def test_there_is_something_to_test() -> None:
    assert len(PROGRAMS) == 4
