"""The logic of `carnet check`'s page where there is no browser: its script on stand-ins for the elements."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import carnet

SCRIPT = Path(carnet.__file__).parent / "report" / "check.js"


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js found to run the page's script with")
def test_filters_and_the_ignore_list() -> None:
    stand_in = Path(__file__).with_name("check_page.js")
    ran = subprocess.run(["node", stand_in, SCRIPT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    out = json.loads(ran.stdout)
    assert out["at_first"] == {"blank": True, "leak": True, "shown": "3 cases shown"}
    assert out["cat"] == {"blank": True, "leak": True, "shown": "2 cases shown"}
    assert out["bird"] == {"blank": False, "leak": True, "shown": "1 case shown"}
    assert out["kind"] == {"blank": False, "leak": True, "shown": "2 cases shown"}
    assert out["basket"]
    # An image that was found twice is ticked twice, and listed once.
    assert (out["together"], out["number"]) == (True, "1")
    text, name = out["files"]
    assert name == "ignore.txt"
    assert text.splitlines()[1:] == ["./#a b.jpg", "b.jpg", "z.jpg"]
