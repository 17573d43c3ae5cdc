"""`benchmarks/house.py` measures the code correctly."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from children import finished
from house import count, cycles, function_lines, import_graph, num_files, table
from worktree import ROOT

SOURCE = """
@decorator
def one():
    return lambda: 1

class Thing:
    async def two(self):
        def three():
            pass

        return three
"""
TREE = {
    "carnet/__init__.py": "def __getattr__(name):\n    import carnet.top\n",
    "carnet/base.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from carnet.types import T\n",
    "carnet/types.py": "import carnet.base\n",
    "carnet/top.py": "from carnet import base, data\nfrom carnet.data import folder\nfrom .data.table import read\n",
    "carnet/data/__init__.py": "",
    "carnet/data/folder.py": "class Folder:\n    from . import table\n",
    "carnet/data/table.py": "try:\n    from .folder import Folder\nexcept ImportError:\n    pass\n",
    "carnet/late.py": "import os, carnet.top\nfrom carnet import top\n",
}
# A stand-in for the package, which computes one trial backward pass before training.
STAND_IN = """
import dataclasses, sys, threading
from pathlib import Path
import torch

@dataclasses.dataclass
class Data:
    number: int = dataclasses.field(default_factory=lambda: 1)

    @property
    def numbers(self):
        return [each for each in range(self.number)]

def generate():
    yield 1

def on_thread():
    pass

def step():
    torch.ones(1, requires_grad=True).sum().backward()

def train():
    Path(sys.argv[4]).mkdir()
    (Path(sys.argv[4]) / "last.ckpt").touch()
    step()

def never():
    pass

list(generate())
Data().numbers
thread = threading.Thread(target=on_thread)
thread.start()
thread.join()
step()
train()
never()
"""


def test_functions_are_counted_from_def_to_end() -> None:
    found = dict(function_lines(ast.parse(SOURCE)))
    assert found == {"3 one": 2, "7 Thing.two": 5, "8 Thing.two.three": 2}


def test_imports_and_their_cycles() -> None:
    trees = {file: ast.parse(source) for file, source in TREE.items()}
    graph = import_graph(trees, only_module_level=True)
    assert graph["carnet"] == graph["carnet.base"] == set()
    assert graph["carnet.top"] == {"carnet.base", "carnet.data", "carnet.data.folder", "carnet.data.table"}
    assert graph["carnet.late"] == {"carnet.top"}
    assert cycles(graph) == [["carnet.data.folder", "carnet.data.table"]]
    graph = import_graph(trees, only_module_level=False)
    assert graph["carnet"] == {"carnet.top"}
    assert cycles(graph) == [["carnet.base", "carnet.types"], ["carnet.data.folder", "carnet.data.table"]]


def test_a_tree_is_counted(tmp_path: Path) -> None:
    for file, source in TREE.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
    body = "    pass\n" * 50
    (tmp_path / "carnet" / "long.py").write_text(f"def short():\n{body[9:]}def long():\n{body}" + "\n" * 400)
    found = count(tmp_path, train=False)
    assert (found["files"], found["lines"]) == (len(TREE) + 1, sum(s.count("\n") for s in TREE.values()) + 501)
    assert found["long_files"] == {"carnet/long.py": 501}
    assert found["long_functions"] == {"carnet/long.py:51 long": 51}
    # Nothing was trained.
    head, *rows = table({"a": found, "b": found}).splitlines()
    assert (head.split(), rows[0].split()) == (["a", "b"], ["files", "9", "9"])
    assert len(rows) < len(table({"a": found | {"entered": {"first gradient": ["a.py:1 a"]}}}).splitlines()) - 1


def test_this_house_has_no_import_cycles() -> None:
    found = count(ROOT, train=False)
    assert found["functions"] > 100
    assert (found["cycles_at_module_level"], found["cycles_in_all"]) == ([], [])


def test_functions_entered_before_the_first_gradient(tmp_path: Path) -> None:
    (tmp_path / "carnet").mkdir()
    (tmp_path / "carnet" / "__init__.py").touch()
    (tmp_path / "carnet" / "__main__.py").write_text(STAND_IN)
    script, out = ROOT / "benchmarks" / "entered_functions.py", tmp_path / "entered.json"
    finished(
        [sys.executable, script, out, "photos", "run"],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    found = {moment: [line.split()[1] for line in lines] for moment, lines in json.loads(out.read_text()).items()}
    before = ["Data.numbers", "generate", "on_thread", "step"]
    assert found == {"first gradient": before, "first gradient of training": [*before, "train"]}
    assert num_files(json.loads(out.read_text())["first gradient"]) == 1


def test_a_command_without_a_gradient_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "carnet").mkdir()
    (tmp_path / "carnet" / "__init__.py").touch()
    (tmp_path / "carnet" / "__main__.py").touch()
    from house import entered

    with pytest.raises(SystemExit, match="no gradient"):
        entered(tmp_path)
