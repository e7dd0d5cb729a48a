"""MLflow: an experiment for each dataset and method, a run for each fold.

Runs go to MLFLOW_TRACKING_URI where it is set, else to files in W/mlruns.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from steph_jax.trackers.protocol import TrackedFold

#: Parameters and metrics that one call takes at most, and characters of a value.
_MOST_PARAMETERS, _MOST_METRICS, _MOST_CHARACTERS = 100, 1000, 500
#: How long a server that does not answer holds a training up: by default it is four minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflow:
    """A `Tracker`."""

    _client: Any
    _run_id: str

    def start(self, fold: TrackedFold, run_id: str | None, step: int) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at its import
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (fold.workdir / "mlruns").as_uri()
        if uri.startswith("file:"):  # MLflow 3 asks for this consent, once per process
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=uri)
        self._step = step
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self._run_id = run_id
            return run_id
        experiment = self._client.get_experiment_by_name(fold.group)
        experiment_id = experiment and experiment.experiment_id
        if experiment_id is None:
            experiment_id = self._client.create_experiment(fold.group)
        tags = {"dataset": fold.dataset, "method": fold.method, "fold": str(fold.fold)}
        run = self._client.create_run(experiment_id, tags=tags, run_name=fold.name)
        self._run_id = str(run.info.run_id)
        parameters = [
            Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in fold.settings.items()
        ]
        for begin in range(0, len(parameters), _MOST_PARAMETERS):
            part = parameters[begin : begin + _MOST_PARAMETERS]
            self._client.log_batch(self._run_id, params=part)
        return self._run_id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, number, now, step) for name, number in numbers.items()]
        for begin in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[begin : begin + _MOST_METRICS])
        self._step = step

    def finish(self, results: Mapping[str, float] | None) -> None:
        if results:
            self.log(self._step, {f"result/{name}": number for name, number in results.items()})
        status = "KILLED" if results is None else "FINISHED"
        self._client.set_terminated(self._run_id, status)
