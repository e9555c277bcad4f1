"""What a training logs, in TensorBoard, Weights & Biases or MLflow as well: one Fabric logger each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from avfewshot.training.trainer import Callback

PROJECT = "avfewshot"


class Tracker(Callback):
    """Sends the entries of ``metrics.jsonl`` to a tracker as they are written; on rank 0, where they are.

    TensorBoard's events go to ``tensorboard/`` in the run folder, those of an offline Weights & Biases to ``wandb/``,
    and MLflow's, unless MLFLOW_TRACKING_URI is set, to ``mlruns/``. `part` is what of the run is trained, such as
    ``seed-1``.
    """

    def __init__(self, name: str, run: Path, part: str, settings: Mapping[str, Any]) -> None:
        self._make = {"tensorboard": _tensorboard, "wandb": WandbLogger, "mlflow": MLflowLogger}[name]
        self._about = run, part, _flat(settings)
        self._logger: Logger | None = None

    def on_log(self, entry: Mapping[str, Any]) -> None:
        """See :class:`~avfewshot.training.trainer.Callback`."""
        self._logger = logger = self._logger or self._make(*self._about)
        kind = {"step": "train", "epoch": "validation"}[entry["kind"]]
        values = {key: value for key, value in _flat(entry).items() if key not in ("kind", "step", "best")}
        metrics = {f"{kind}/{key}": float(value) for key, value in values.items() if isinstance(value, (int, float))}
        logger.log_metrics(metrics, step=int(entry["step"]))

    def on_fit_end(self, finished: bool) -> None:
        """See :class:`~avfewshot.training.trainer.Callback`."""
        if self._logger is not None:
            self._logger.finalize("success" if finished else "aborted")
            self._logger = None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, ``section/name``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _key(run: Path, part: str) -> str:
    """Names a run to a tracker, so that a resumed training goes on with its own."""
    return hashlib.sha256(os.fsencode(run.absolute() / part)).hexdigest()[:16]


def _tensorboard(run: Path, part: str, settings: Mapping[str, Any]) -> Logger:
    logger = TensorBoardLogger(run, name="tensorboard", version=part)
    logger.experiment.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))
    return logger


class WandbLogger(Logger):
    """Weights & Biases by its own client, which reads WANDB_MODE, WANDB_PROJECT, WANDB_API_KEY, ..."""

    def __init__(self, run: Path, part: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), id=_key(run, part), resume="allow",
            name=f"{run.name}/{part}", group=run.name, dir=run,
        )  # fmt: skip
        self.log_hyperparams(dict(settings))

    @property
    def name(self) -> str:
        """The project."""
        return self._run.project

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run.id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """See Fabric's Logger."""
        self._run.log({**metrics, "step": step})  # a resumed training repeats steps, which wandb's own must not

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """See Fabric's Logger."""
        self._run.config.update(params, allow_val_change=True)

    def finalize(self, status: str) -> None:
        """See Fabric's Logger."""
        self._run.finish(exit_code=0 if status == "success" else 1)


class MLflowLogger(Logger):
    """MLflow by its own client."""

    def __init__(self, run: Path, part: str, settings: Mapping[str, Any]) -> None:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow asks for a database
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (run.absolute() / "mlruns").as_uri())
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(project)
        self._experiment = known.experiment_id if known else self._client.create_experiment(project)
        key = _key(run, part)
        before = self._client.search_runs([self._experiment], f"tags.avfewshot = '{key}'")
        if before:
            self._id = before[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
            return
        made = self._client.create_run(self._experiment, tags={"avfewshot": key}, run_name=f"{run.name}/{part}")
        self._id = made.info.run_id
        self.log_hyperparams(dict(settings))

    @property
    def name(self) -> str:
        """The experiment's id."""
        return self._experiment

    @property
    def version(self) -> str:
        """The run's id."""
        return self._id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """See Fabric's Logger."""
        for name, value in metrics.items():
            self._client.log_metric(self._id, name, value, step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """See Fabric's Logger."""
        for name, value in params.items():
            self._client.log_param(self._id, name, str(value)[:500])

    def finalize(self, status: str) -> None:
        """See Fabric's Logger."""
        self._client.set_terminated(self._id, "FINISHED" if status == "success" else "KILLED")
