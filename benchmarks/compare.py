"""Record what `carnet compare` finds: a dated result, and its figure where one is wanted.

Runs the command as a user would; finished runs are taken as they are, and stopped ones go on. Shown are folders by
their names alone, which say nothing elsewhere.

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
    parser.add_argument("name", help="of the result file, after compare-")
    parser.add_argument("--figure", type=Path, help="where a copy of the figure goes")
    parser.add_argument("arguments", nargs="+", help="of carnet compare, after --; --output among them")
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
