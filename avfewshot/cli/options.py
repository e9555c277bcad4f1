"""Options of the command line that come from the settings: name, help, default and completion are written once."""

from __future__ import annotations

from typing import Any

import typer

from avfewshot.setting_kinds import Flag, PathText
from avfewshot.settings import TABLES, UNSET, Setting


def setting_option(name: str, panel: str | None = None, *, table: str = "zeroshot") -> Any:
    """The option of a setting.

    Its value is None when it is not given, so that the environment and ``avfs.toml`` get their say, and text otherwise:
    :func:`avfewshot.settings.resolve` reads and checks it, which lets all faults be told at once.

    Args:
        name: Of the setting.
        panel: Title of the box that it stands in.
        table: Command that the setting belongs to.
    """
    return _option(TABLES[table][name], panel)


def _option(setting: Setting, panel: str | None) -> Any:
    switch = isinstance(setting.kind, Flag)
    help_text = setting.help
    if setting.default is not None or setting.unset != UNSET:
        help_text += f" [dim](default: {setting.shown_default()})[/dim]"
    extra: dict[str, Any] = {}
    if not isinstance(setting.kind, PathText):  # shells complete file names by themselves
        extra["autocompletion"] = _backbones if setting.name == "backbone" else setting.kind.suggestions
    return typer.Option(
        f"{setting.flag}/--no-{setting.flag[2:]}" if switch else setting.flag,
        metavar="" if switch else setting.kind.metavar,
        help=help_text,
        show_default=False,
        rich_help_panel=panel,
        **({} if switch else extra),
    )


def training_option(name: str, panel: str | None = None) -> Any:
    """The option of a field of :class:`~avfewshot.training.config.TrainingConfig`; None when it is not given.

    Args:
        name: Of the field.
        panel: Title of the box that it stands in.
    """
    from avfewshot.training.config import training_settings

    setting = next(setting for setting in training_settings() if setting.name == name)
    return _option(setting, panel)


def _backbones() -> list[str]:
    from avfewshot.encoders.presets import preset_names

    return preset_names()
