"""`--tracker`: what a training logs, in TensorBoard, Weights & Biases and MLflow, without a network."""

import importlib.util

import pytest
from training_support import log, make_trainer, resumed

from avfewshot.training.protocol import Callback
from avfewshot.training.trackers import PROJECT, Tracker

SETTINGS = {"training": {"lr": 0.001, "task": "folder"}}


class Broken(Callback):
    def on_step(self, step, loss, pace):
        if step == 2:
            raise RuntimeError("the end")


def logged(folder):
    """The losses of the steps in ``metrics.jsonl`` by step."""
    return {entry["step"]: entry["loss"] for entry in log(folder / "seed-1") if entry["kind"] == "step"}


def train(name, folder, *more):
    make_trainer(
        folder / "seed-1", callbacks=[Tracker(name, folder, "seed-1", SETTINGS), *more], epochs=1, validate_every=1
    ).fit()


def test_tensorboard_has_steps_and_validations(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "seed-1"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(logged(tmp_path))
    assert events.Scalars("validation/figure")[-1].step == max(logged(tmp_path))
    assert {"train/lr", "train/visual_loss"} <= set(events.Tags()["scalars"])


def test_mlflow_goes_on_with_the_run_of_a_training_that_failed(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    with pytest.raises(RuntimeError, match="the end"):
        train("mlflow", tmp_path, Broken())
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name(PROJECT).experiment_id
    [only] = client.search_runs([experiment])
    assert only.info.status == "KILLED"
    assert only.data.params["training/lr"] == "0.001"
    resumed(
        tmp_path / "seed-1", epochs=1, validate_every=1, callbacks=[Tracker("mlflow", tmp_path, "seed-1", SETTINGS)]
    ).fit()
    [only] = client.search_runs([experiment])
    assert only.info.status == "FINISHED"
    history = client.get_metric_history(only.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in history} == pytest.approx(logged(tmp_path))


def test_wandb_writes_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent = []
    init = wandb.init

    def spied(**options):
        made = init(**options)
        real = made.log
        monkeypatch.setattr(made, "log", lambda values: (sent.append(values), real(values)))
        return made

    monkeypatch.setattr(wandb, "init", spied)
    train("wandb", tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    losses = {values["step"]: values["train/loss"] for values in sent if "train/loss" in values}
    assert losses == pytest.approx(logged(tmp_path))


@pytest.mark.parametrize("command", ["fewshot --data .", "pretrain vggsound40k --root .", "train ave --root ."])
def test_a_tracker_that_is_not_installed_is_misuse_before_anything_is_loaded(command, avfs, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "mlflow" else find(name, *of))
    assert "avfewshot[mlflow]" in avfs.refused(*command.split(), "--tracker", "mlflow")
    assert not (tmp_path / "runs").exists()
