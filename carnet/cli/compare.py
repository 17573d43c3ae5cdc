"""`carnet compare`: which network is better, by how much, and how sure is that?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from carnet.cli.main import console, print_json, words
from carnet.config import PRESETS, TrainingConfig
from carnet.errors import ConfigError

if TYPE_CHECKING:
    from carnet.comparison.latency import ToGraph
    from carnet.comparison.runs import TrainOne


@dataclass(frozen=True)
class Command:
    """Compare networks on your own data: train each with several seeds, or take runs that exist.

    With --models, DATA is what carnet train takes. Finished runs are kept and stopped ones go on, so the same command
    may be given again, and with more seeds. Without --models, the runs are named. The folder that comes out has
    comparison.html, the figure as PNG and SVG, table.md, table.csv and comparison.json. Exit code 1: a network could
    not be trained here, and the others are compared.

    Examples:
      carnet compare photos --models carnet_s,resnet18 --seeds 3 --budget 10m
      carnet compare photos --models carnet18,resnet18 --seeds 5 --preset published
      carnet compare runs/photos-carnet_s runs/photos-carnet_n
    """

    targets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA|RUN")] = ()
    """The images, or the folders of finished runs."""
    models: str = ""
    """Networks to train, separated by commas: ours, or timm/NAME."""
    seeds: int = 3
    """Runs of each network, with seeds 0, 1, …"""
    preset: Literal["default", "published"] = "default"
    """Recipe of all; the flags below change it."""
    reach: str = ""
    """Accuracies in per cent, separated by commas, to tell the time to (default: tens that all runs reach)."""
    data: str = ""
    """The images of finished runs, if they are no longer where they were."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where runs and answers go (default: runs/compare-DATA, or comparison for runs that exist)."""
    json: bool = False
    """Print the answer as one JSON document; progress goes to standard error."""
    recipe: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)

    def initial_recipe(self) -> TrainingConfig:
        """What the recipe's flags change."""
        return PRESETS[self.preset]()

    def run(self, train: TrainOne | None = None, to_graph: ToGraph | None = None) -> int:
        """Train what is missing and compare, by the given means or as usual; returns the exit code."""
        from carnet.comparison.verdict import compare

        models = words(self.models)
        try:
            reach = [float(word) / 100 for word in words(self.reach)]
        except ValueError:
            raise ConfigError(f"--reach takes per cents separated by commas, got {self.reach!r}") from None
        defaults = PRESETS[self.preset]()
        if models and (self.recipe.model, self.recipe.seed) != (defaults.model, defaults.seed):
            raise ConfigError("--models names the networks here, and --seeds how many runs each has, from seed 0 on")
        if models and self.data:
            raise ConfigError("--data says where the images of finished runs are; with --models, name them first")
        if not models and (self.seeds, self.preset, self.recipe) != (Command.seeds, "default", TrainingConfig()):
            raise ConfigError("--seeds, --preset and the recipe's flags say how to train; name --models to be trained")
        with console(self.json) as progress:
            answer = compare(
                self.targets,
                self.output,
                models=models,
                seeds=self.seeds,
                config=self.recipe,
                reach=reach,
                data=self.data or None,
                progress=progress,
                train=train,
                to_graph=to_graph,
            )
            if not self.json:
                page = answer.folder / "comparison.html"
                progress.say("\n".join(["", *answer.sentences, f"The comparison is {page}."]))
        if self.json:
            print_json(answer.document)
        return 1 if answer.untrained else 0
