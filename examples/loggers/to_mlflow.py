"""Log a training run to MLflow: `pip install mlflow`, or mlflow-skinny with MLFLOW_TRACKING_URI=http://SERVER."""

import sys
from dataclasses import asdict

import mlflow

import carnet


class MlflowLogger(carnet.Callback):
    """Sends the settings once and the metrics of every epoch."""

    def on_fit_start(self, run):
        mlflow.end_run("KILLED")  # One that has ended in an error may be open.
        mlflow.start_run(run_name=run.folder.path.name)
        mlflow.log_params({name: str(value) for name, value in asdict(run.config).items()})

    def on_epoch_end(self, run):
        metrics = {name: value for name, value in run.state.history[-1].items() if value is not None}
        mlflow.log_metrics(metrics, step=metrics["epoch"])

    def on_fit_end(self, run):
        mlflow.end_run()


if __name__ == "__main__":
    carnet.train(sys.argv[1], callbacks=[MlflowLogger()])
