"""Log a training run to Weights & Biases: `pip install wandb`, then `wandb login`, or WANDB_MODE=offline."""

import sys
from dataclasses import asdict

import wandb

import carnet


class WandbLogger(carnet.Callback):
    """Sends the settings once and the metrics of every epoch."""

    def on_fit_start(self, run):
        self.log = wandb.init(project="carnet", name=run.folder.path.name, config=asdict(run.config))

    def on_epoch_end(self, run):
        metrics = run.state.history[-1]
        self.log.log(metrics, step=metrics["epoch"])

    def on_interrupt(self, run):
        self.log.finish(exit_code=1)

    def on_fit_end(self, run):
        self.log.finish()


if __name__ == "__main__":
    carnet.train(sys.argv[1], callbacks=[WandbLogger()])
