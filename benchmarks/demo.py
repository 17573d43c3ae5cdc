"""Run `carnet demo` as a user would and record how long it took and what it learned.

Example:
  python benchmarks/demo.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import write_result


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "carnet", "demo", "--json", "--output", str(Path(folder) / "demo")]
        started = time.monotonic()
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - started
    result = json.loads(answer.stdout)
    del result["predicted"]
    numbers = {"seconds_from_process_start": round(seconds, 1), "result": result}
    print(write_result("demo", "carnet demo", numbers))


if __name__ == "__main__":
    main()
