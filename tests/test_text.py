"""Words that several rooms use."""

import os
import shlex
from pathlib import Path

import pytest

from carnet.text import printable, quoted


@pytest.mark.skipif(os.name == "nt", reason="another shell")
@pytest.mark.parametrize("name", ["runs/photos-carnet_s", "runs/my photos-carnet_s", "it's", "a;b", "$HOME"])
def test_a_path_that_is_shown_can_be_pasted(name: str) -> None:
    assert shlex.split(f"carnet export {quoted(Path(name))}") == ["carnet", "export", name]
    assert quoted("runs/photos-carnet_s") == "runs/photos-carnet_s"


def test_a_name_cannot_command_a_terminal() -> None:
    assert printable("dög\x1b]52;c;\x07 \r\x9b a\nb") == r"dög\x1b]52;c;\x07 \r\x9b a\nb"
    assert printable("one\ntwo\t", keep="\n") == "one\ntwo\\t"
