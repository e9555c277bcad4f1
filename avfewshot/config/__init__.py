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

from avfewshot.config.commands import COMMANDS as COMMANDS
from avfewshot.config.commands import CompareConfig as CompareConfig
from avfewshot.config.commands import EmbedConfig as EmbedConfig
from avfewshot.config.commands import EngineConfig as EngineConfig
from avfewshot.config.commands import ExportConfig as ExportConfig
from avfewshot.config.commands import FewshotConfig as FewshotConfig
from avfewshot.config.commands import FindConfig as FindConfig
from avfewshot.config.commands import PretrainConfig as PretrainConfig
from avfewshot.config.commands import SuggestConfig as SuggestConfig
from avfewshot.config.commands import SupervisedConfig as SupervisedConfig
from avfewshot.config.commands import TowersConfig as TowersConfig
from avfewshot.config.commands import ZeroshotConfig as ZeroshotConfig
from avfewshot.config.commands import table_settings as table_settings
from avfewshot.config.fields import UNSET as UNSET
from avfewshot.config.fields import Setting as Setting
from avfewshot.config.fields import absolute as absolute
from avfewshot.config.fields import settings_of as settings_of
from avfewshot.config.kinds import ADAPTER_METHODS as ADAPTER_METHODS
from avfewshot.config.kinds import AUDIO_CONTEXTS as AUDIO_CONTEXTS
from avfewshot.config.kinds import AUTO as AUTO
from avfewshot.config.kinds import NONE as NONE
from avfewshot.config.kinds import TASKS as TASKS
from avfewshot.config.kinds import TUNED_METHODS as TUNED_METHODS
from avfewshot.config.kinds import method_choices as method_choices
from avfewshot.config.kinds import not_one_of as not_one_of
from avfewshot.config.layers import CONFIG_NAME as CONFIG_NAME
from avfewshot.config.layers import Resolved as Resolved
from avfewshot.config.layers import environment_name as environment_name
from avfewshot.config.layers import read_config as read_config
from avfewshot.config.layers import resolve as resolve
from avfewshot.config.training import PAPER as PAPER
from avfewshot.config.training import SHAPING as SHAPING
from avfewshot.config.training import BackboneConfig as BackboneConfig
from avfewshot.config.training import PretrainingConfig as PretrainingConfig
from avfewshot.config.training import SupervisedTrainingConfig as SupervisedTrainingConfig
from avfewshot.config.training import TrainerConfig as TrainerConfig
from avfewshot.config.training import TrainingConfig as TrainingConfig
from avfewshot.config.training import read_training as read_training
