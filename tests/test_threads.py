"""The command lets compute threads wait briefly; the library leaves that to its user, and states the consequence."""

import os
import sys

import pytest
from children import finished
from runs import resolved

from carnet.config import TrainingConfig

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="PyTorch uses other threads there")
SHOW = """
import os, sys
sys.argv = ["carnet", "summary", "--help"]
try:
    {}
finally:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""
COMMAND, LIBRARY = "from carnet.cli.main import main; main()", "import carnet; carnet.TrainingConfig()"


@on_linux
@pytest.mark.parametrize(
    ("chosen", "code", "expected"),
    [
        ({}, COMMAND, "20000"),
        ({"GOMP_SPINCOUNT": "7"}, COMMAND, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, COMMAND, "None"),
        ({}, LIBRARY, "None"),
    ],
)
def test_who_chooses_how_threads_wait(chosen: dict[str, str], code: str, expected: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = finished([sys.executable, "-c", SHOW.format(code)], env=environment | chosen, check=True)
    assert done.stdout.splitlines()[-1] == expected


@on_linux
def test_the_resolved_config_states_what_was_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert any("GOMP_SPINCOUNT" in reason for reason in resolved(TrainingConfig(threads=2)).reasons)
    assert not any("GOMP_SPINCOUNT" in reason for reason in resolved(TrainingConfig(threads=1)).reasons)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert not any("GOMP_SPINCOUNT" in reason for reason in resolved(TrainingConfig(threads=2)).reasons)
