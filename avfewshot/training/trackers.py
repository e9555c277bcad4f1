"""What a training logs, in TensorBoard, Weights & Biases or MLflow as well, each by its own client."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avfewshot.training.protocol import Callback

PROJECT = "avfewshot"

_Opened = tuple[Callable[[dict[str, float], int], Any], Callable[[bool], Any]]
"""What takes metrics and their step, and what ends a run, given whether it came to its end."""


class Tracker(Callback):
    """Sends the entries of ``metrics.jsonl`` to a tracker as they are written; on rank 0, where they are.

    TensorBoard's events go to ``tensorboard/`` in the run folder, those of an offline Weights & Biases to ``wandb/``,
    and MLflow's, unless MLFLOW_TRACKING_URI is set, to ``mlruns/``. `part` is what of the run is trained, such as
    ``seed-1``.
    """

    def __init__(self, name: str, run: Path, part: str, settings: Mapping[str, Any]) -> None:
        self._open = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name]
        self._about = run, part, _flat(settings)
        self._opened: _Opened | None = None

    def on_log(self, entry: Mapping[str, Any]) -> None:
        """See :class:`~avfewshot.training.protocol.Callback`."""
        self._opened = self._opened or self._open(*self._about)
        kind = {"step": "train", "epoch": "validation"}[entry["kind"]]
        values = {key: value for key, value in _flat(entry).items() if key not in ("kind", "step", "best")}
        metrics = {f"{kind}/{key}": float(value) for key, value in values.items() if isinstance(value, (int, float))}
        self._opened[0](metrics, int(entry["step"]))

    def on_fit_end(self, finished: bool) -> None:
        """See :class:`~avfewshot.training.protocol.Callback`."""
        if self._opened is not None:
            self._opened[1](finished)
            self._opened = None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, ``section/name``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _key(run: Path, part: str) -> str:
    """Names a run to a tracker, so that a resumed training goes on with its own."""
    return hashlib.sha256(os.fsencode(run.absolute() / part)).hexdigest()[:16]


def _tensorboard(run: Path, part: str, settings: Mapping[str, Any]) -> _Opened:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    logger = TensorBoardLogger(run, name="tensorboard", version=part)
    logger.experiment.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))
    return logger.log_metrics, lambda finished: logger.finalize("success" if finished else "aborted")


def _wandb(run: Path, part: str, settings: Mapping[str, Any]) -> _Opened:
    """The client reads WANDB_MODE, WANDB_PROJECT, WANDB_API_KEY, ..."""
    import wandb

    made = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), id=_key(run, part), resume="allow",
        name=f"{run.name}/{part}", group=run.name, dir=run,
    )  # fmt: skip
    made.config.update(dict(settings), allow_val_change=True)
    # A resumed training repeats steps, which wandb's own must not.
    return (
        lambda metrics, step: made.log({**metrics, "step": step}),
        lambda finished: made.finish(exit_code=0 if finished else 1),
    )


def _mlflow(run: Path, part: str, settings: Mapping[str, Any]) -> _Opened:
    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow asks for a database
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (run.absolute() / "mlruns").as_uri())
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(project)
    experiment = known.experiment_id if known else client.create_experiment(project)
    key = _key(run, part)
    before = client.search_runs([experiment], f"tags.avfewshot = '{key}'")
    if before:
        name = before[0].info.run_id
        client.update_run(name, "RUNNING")
    else:
        made = client.create_run(experiment, tags={"avfewshot": key}, run_name=f"{run.name}/{part}")
        name = made.info.run_id
        for setting, value in settings.items():
            client.log_param(name, setting, str(value)[:500])

    def log(metrics: dict[str, float], step: int) -> None:
        for metric, value in metrics.items():
            client.log_metric(name, metric, value, step=step)

    return log, lambda finished: client.set_terminated(name, "FINISHED" if finished else "KILLED")
