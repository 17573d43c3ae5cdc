"""Words that several rooms use."""

import os
import shlex
from pathlib import Path

import pytest

from carnet.progress import quoted


@pytest.mark.skipif(os.name == "nt", reason="another shell")
@pytest.mark.parametrize("name", ["runs/photos-carnet_s", "runs/my photos-carnet_s", "it's", "a;b", "$HOME"])
def test_a_path_that_is_shown_can_be_pasted(name: str) -> None:
    assert shlex.split(f"carnet export {quoted(Path(name))}") == ["carnet", "export", name]
    assert quoted("runs/photos-carnet_s") == "runs/photos-carnet_s"
