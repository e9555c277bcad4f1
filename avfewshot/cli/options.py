"""Options of the command line that come from the settings: name, help, default and completion are written once."""

from __future__ import annotations

from typing import Any

import typer

from avfewshot.setting_kinds import Flag, PathText
from avfewshot.settings import TABLES, UNSET


def setting_option(name: str, panel: str | None = None, *, table: str = "zeroshot") -> Any:
    """The option of a setting.

    Its value is None when it is not given, so that the environment and ``avfs.toml`` get their say, and text otherwise:
    :func:`avfewshot.settings.resolve` reads and checks it, which lets all faults be told at once.

    Args:
        name: Of the setting.
        panel: Title of the box that it stands in.
        table: Command that the setting belongs to.
    """
    setting = TABLES[table][name]
    switch = isinstance(setting.kind, Flag)
    help_text = setting.help
    if setting.default is not None or setting.unset != UNSET:
        help_text += f" [dim](default: {setting.shown_default()})[/dim]"
    extra: dict[str, Any] = {}
    if not isinstance(setting.kind, PathText):  # shells complete file names by themselves
        extra["autocompletion"] = _backbones if name == "backbone" else setting.kind.suggestions
    return typer.Option(
        f"{setting.flag}/--no-{setting.flag[2:]}" if switch else setting.flag,
        metavar="" if switch else setting.kind.metavar,
        help=help_text,
        show_default=False,
        rich_help_panel=panel,
        **({} if switch else extra),
    )


def _backbones() -> list[str]:
    from avfewshot.encoders.presets import preset_names

    return preset_names()
