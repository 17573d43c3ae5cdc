"""Record the results of `carnet compare`: a dated result file, and a copy of its figure if requested.

The command runs as a user would run it: finished runs are kept, and interrupted ones are resumed. The result shows only
the names of folders, because their paths mean nothing elsewhere.

Example:
  python benchmarks/compare.py sports100-64px --figure docs/images/comparison-sports100.png -- DATA/sports100 \\
      --models carnet18,resnet18,carnet_s --seeds 1 --preset published --image-size 64 --budget 20m --output runs/sports
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from environment import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the result file, after compare-")
    parser.add_argument("--figure", type=Path, help="file for a copy of the figure")
    parser.add_argument("arguments", nargs="+", help="arguments of carnet compare, after --, with --output")
    options = parser.parse_args()
    command = [sys.executable, "-m", "carnet", "compare", *options.arguments, "--json"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
    shown = " ".join(Path(word).name if Path(word).exists() else word for word in options.arguments)
    print(write_result(f"compare-{options.name}", f"carnet compare {shown}", {"comparison": json.loads(answer)}))
    if options.figure is not None:
        output = options.arguments[options.arguments.index("--output") + 1]
        shutil.copy(Path(output) / "comparison.png", options.figure)


if __name__ == "__main__":
    main()
