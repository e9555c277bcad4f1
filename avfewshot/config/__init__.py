"""Every setting, once: a field of a pydantic model with its type, bounds, default, help, panel and option.

A command is a model made of such models (:class:`ZeroshotConfig`, :class:`FewshotConfig`, :class:`PretrainConfig`).
From it follow the options of the command line (:mod:`avfewshot.cli.options`), the layers

    flag > environment ``AVFS_NAME`` > ``avfs.toml`` > ``--config`` file > default of the task > default

with the source of each value (:func:`resolve`), ``avfs config`` and ``run.json`` (the ``model_dump`` of the command).
A new setting is one line, for example in :class:`TrainingConfig`:

    val_shots: Annotated[int, Ge(0)] = setting(0, "Validation clips of each class.", panel=DATA)

which gives ``avfs fewshot --val-shots``, the key ``val_shots`` in files for ``--config``, its check and its help;
``saved=True`` adds ``AVFS_VAL_SHOTS`` and the key in ``avfs.toml``. A new command is a model with a table:

    class CompareConfig(CommandConfig, table="compare"):
        training: TrainingConfig = section(TrainingConfig)
        model: BackboneConfig = section(BackboneConfig)
        shots_list: Annotated[str, AfterValidator(...)] = setting("1,2,4", "Shots to compare.", flag="--shots")

Importing this module imports nothing heavy.
"""

from __future__ import annotations

from avfewshot.config.commands import (
    COMMANDS,
    CompareConfig,
    EmbedConfig,
    EngineConfig,
    ExportConfig,
    FewshotConfig,
    FindConfig,
    PretrainConfig,
    SuggestConfig,
    SupervisedConfig,
    TowersConfig,
    ZeroshotConfig,
    table_settings,
)
from avfewshot.config.fields import UNSET, Setting, settings_of
from avfewshot.config.kinds import (
    ADAPTER_METHODS,
    AUDIO_CONTEXTS,
    AUTO,
    NONE,
    TASKS,
    TUNED_METHODS,
    method_choices,
    not_one_of,
)
from avfewshot.config.layers import CONFIG_NAME, Resolved, environment_name, read_config, resolve
from avfewshot.config.training import (
    PAPER,
    SHAPING,
    BackboneConfig,
    PretrainingConfig,
    SupervisedTrainingConfig,
    TrainerConfig,
    TrainingConfig,
    read_training,
)

__all__ = [
    "ADAPTER_METHODS",
    "AUDIO_CONTEXTS",
    "AUTO",
    "COMMANDS",
    "CONFIG_NAME",
    "NONE",
    "PAPER",
    "SHAPING",
    "TASKS",
    "TUNED_METHODS",
    "UNSET",
    "BackboneConfig",
    "CompareConfig",
    "EmbedConfig",
    "EngineConfig",
    "ExportConfig",
    "FewshotConfig",
    "FindConfig",
    "PretrainConfig",
    "PretrainingConfig",
    "Resolved",
    "Setting",
    "SuggestConfig",
    "SupervisedConfig",
    "SupervisedTrainingConfig",
    "TowersConfig",
    "TrainerConfig",
    "TrainingConfig",
    "ZeroshotConfig",
    "environment_name",
    "method_choices",
    "not_one_of",
    "read_config",
    "read_training",
    "resolve",
    "settings_of",
    "table_settings",
]
