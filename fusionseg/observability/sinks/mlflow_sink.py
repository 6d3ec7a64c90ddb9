"""MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from fusionseg.observability.sinks.sink import Picture, RunEnd, RunStart, Sink
from fusionseg.observability.sinks.values import best_scores, numbers_of, pixels_of, settings_of

NAME = "mlflow"
"""The package, its key in the configuration, and the extra that installs it."""
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A server that does not answer must not hold up the training for the minutes that MLflow waits.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # MLflow 3 refuses stores in plain files, which work without a database, unless it is told not to.
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
"""Defaults of MLflow's settings; those of the user come first."""
_PARAMETERS_IN_A_CALL, _LONGEST_PARAMETER = 100, 6000
_NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")


class MlflowSink(Sink):
    """A run on an MLflow server or in a local store."""

    def __init__(self, ids: MutableMapping[str, str], *, experiment: str, uri: str | None = None) -> None:
        """Args:
        ids: the ids of the run, in which that of MLflow is kept.
        experiment: the name of the experiment; it is made if there is none.
        uri: the tracking URI; None for that of MLFLOW_TRACKING_URI, or MLflow's default.
        """
        self._ids = ids
        self._experiment = experiment
        self._uri = uri
        self._client: Any = None
        self._run = ""

    def start(self, run: RunStart) -> Mapping[str, int]:
        """Begin or continue the run, and ask for what it has."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        known = self._find(client)
        if known is None:
            known = client.create_run(self._experiment_id(client), run_name=run.name)
            self._ids[NAME] = known.info.run_id
        self._client, self._run = client, known.info.run_id
        client.update_run(self._run, status="RUNNING")
        self._describe(run, known.data.params)
        last: dict[str, int] = {}
        for name in known.data.metrics:
            kind = name.partition("/")[0]
            steps = [point.step for point in client.get_metric_history(self._run, name)]
            last[kind] = max([*steps, last.get(kind, 0)])
        return last

    def record(self, record: Mapping[str, Any]) -> None:
        """Add the numbers of a record as metrics."""
        self._add(numbers_of(record), record["step"])

    def image(self, name: str, image: Picture, step: int) -> None:
        """Add a picture."""
        self._client.log_image(self._run, pixels_of(image), key=name, step=step)

    def finish(self, end: RunEnd) -> None:
        """Add the best scores and the reason of the end, and set the status of the run.

        A run that goes on without its sink stays RUNNING there: its end is not known, and the server may not answer.
        """
        client, self._client = self._client, None
        if client is None or end.is_abandoned:
            return
        if end.is_final:
            self._add(best_scores(end.record), end.record["step"], client)
        if end.record:
            client.set_tag(self._run, "reason", end.record["reason"])
        client.set_terminated(self._run, "FINISHED" if end.is_final else "FAILED" if end.has_failed else "KILLED")

    def _find(self, client: Any) -> Any:
        """The run of an earlier start; None if there is none, or if this store does not have it."""
        from mlflow.exceptions import MlflowException

        if NAME not in self._ids:
            return None
        try:
            return client.get_run(self._ids[NAME])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _experiment_id(self, client: Any) -> str:
        """The id of the experiment, which is made if there is none."""
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            try:
                return str(client.create_experiment(self._experiment))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = client.get_experiment_by_name(self._experiment)  # another run has made it since
        return str(experiment.experiment_id)

    def _describe(self, run: RunStart, present: Mapping[str, str]) -> None:
        """Add configuration and environment. A parameter of MLflow never changes: those that it has are left out."""
        from mlflow.entities import Param, RunTag

        tags = {
            "mlflow.note.content": run.note,
            "mlflow.source.git.commit": run.environment.get("commit"),
            "fusionseg": run.environment.get("fusionseg"),
            "folder": run.folder,
        }
        self._client.log_batch(self._run, tags=[RunTag(name, str(value)) for name, value in tags.items() if value])
        settings = [
            Param(_name(key), str(value)[:_LONGEST_PARAMETER])
            for key, value in settings_of(run.config).items()
            if _name(key) not in present
        ]
        for first in range(0, len(settings), _PARAMETERS_IN_A_CALL):
            self._client.log_batch(self._run, params=settings[first : first + _PARAMETERS_IN_A_CALL])
        self._client.log_text(self._run, run.config_text, "configuration.yaml")
        self._client.log_dict(self._run, dict(run.environment), "versions.json")

    def _add(self, numbers: Mapping[str, float], step: int, client: Any = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), value, now, step) for name, value in numbers.items()]
        (client or self._client).log_batch(self._run, metrics=metrics)


def _name(name: str) -> str:
    """A name with the letters that MLflow allows."""
    return _NOT_IN_NAMES.sub("_", name)
