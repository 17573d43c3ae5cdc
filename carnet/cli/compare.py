"""`carnet compare`: compare networks on the same images, with confidence intervals."""

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
    """Compare networks on your own data: train each with several seeds, or use existing runs.

    With --models, name the images as for carnet train. Finished runs are kept and interrupted ones are resumed, so the
    same command can be repeated, also with more seeds. Without --models, name finished runs. The output folder gets
    comparison.html, a figure (PNG and SVG), table.md, table.csv and comparison.json. Exit code 1 means that a network
    could not be trained here, and the others were compared.

    Examples:
      carnet compare photos --models carnet_s,resnet18 --seeds 3 --budget 10m
      carnet compare photos --models carnet18,resnet18 --preset published
      carnet compare runs/photos-carnet_s runs/photos-carnet_n
    """

    targets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA|RUN")] = ()
    """Images to train on, or folders of finished runs."""
    models: str = ""
    """Networks to train, separated by commas: our own, or timm/NAME."""
    seeds: int = 3
    """Number of runs of each network, with seeds 0, 1, …"""
    preset: Literal["default", "published"] = "default"
    """Recipe of all runs; the flags below override it."""
    reach: str = ""
    """Accuracies in percent, separated by commas, whose training time is reported (default: tens that all reach)."""
    data: str = ""
    """Images of the finished runs, if they have moved."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Output folder (default: runs/compare-DATA with --models, else comparison)."""
    json: bool = False
    """Print the results as one JSON document; progress goes to standard error."""
    recipe: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)

    def initial_recipe(self) -> TrainingConfig:
        """Return the recipe that the flags override."""
        return PRESETS[self.preset]()

    def run(self, train: TrainOne | None = None, to_graph: ToGraph | None = None) -> int:
        """Train the missing runs, compare all, and return the exit code.

        Args:
            train: trains one network; None: as `carnet train` does.
            to_graph: exports a network; None: as `carnet export` does.
        """
        from carnet.comparison.verdict import compare

        models = words(self.models)
        try:
            reach = [float(word) / 100 for word in words(self.reach)]
        except ValueError:
            raise ConfigError(f"--reach must be percentages separated by commas, got {self.reach!r}") from None
        defaults = PRESETS[self.preset]()
        if models and (self.recipe.model, self.recipe.seed) != (defaults.model, defaults.seed):
            raise ConfigError("--model and --seed do not apply here; use --models and --seeds, the number of runs")
        if models and self.data:
            raise ConfigError("--data is for finished runs; with --models, name the images as the first argument")
        if not models and (self.seeds, self.preset, self.recipe) != (Command.seeds, "default", TrainingConfig()):
            raise ConfigError("--seeds, --preset and the flags of the recipe need --models, the networks to train")
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
