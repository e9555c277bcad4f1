"""From settings to the options of a command, and the checks that commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.config import COMMANDS, UNSET, Resolved, Setting, not_one_of, settings_of
from avfewshot.errors import UsageError, collect
from avfewshot.labels import LabelSet, parse_labels

if TYPE_CHECKING:
    from avfewshot.encoders.presets import Preset


def with_options(table: str, *, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting of `table`, beside those that its own signature names.

    The command gets what was given by key, as text (switches as bool), None where nothing was:
    :func:`avfewshot.config.resolve` reads and checks it, so that the environment and files get their say and all faults
    are told at once.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {parameter.name for parameter in own}
        generated = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(single))
            for key, single in settings_of(COMMANDS[table]).items()
            if key not in names and key not in without
        ]
        # Arguments first: those without a flag.
        generated.sort(key=lambda parameter: not isinstance(parameter.annotation.__metadata__[0], type(_ARGUMENT)))

        def call(**values: Any) -> None:
            command(**values)

        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__signature__ = inspect.Signature([*own, *generated])  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *generated)}
        return call

    return decorate


_ARGUMENT = typer.Argument()
_OPPOSITES = {"resume": "--overwrite"}


def argument(metavar: str, help: str) -> Any:
    """An argument of a command's own."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


def option(flag: str, metavar: str, help: str, **more: Any) -> Any:
    """An option of a command's own, beside those of its settings; a switch has an empty `metavar`."""
    return typer.Option(flag, metavar=metavar, help=help, show_default=False, **more)


def choice(flag: str, *words: str, help: str) -> Any:
    """An option of a command's own that is one of some words; another one is a :class:`UsageError`."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in words:
            raise UsageError(f"{flag}: {not_one_of(value, words)}")
        return value

    return typer.Option(flag, metavar="|".join(words), help=help, callback=check)


TableOrJson = Annotated[str, choice("--format", "table", "json", help="Form of the answer.")]


def setting_option(name: str, panel: str | None = None) -> Any:
    """The option of one setting of zeroshot, for a command that has few of them."""
    return _option(settings_of(COMMANDS["zeroshot"])[name], panel)


def _annotation(setting: Setting) -> Any:
    if not setting.flag.startswith("--"):
        return Annotated[str | None, typer.Argument(metavar=setting.flag, help=setting.help, show_default=False)]
    kind = bool | None if setting.is_switch else list[str] | None if setting.is_list else str | None
    return Annotated[kind, _option(setting, setting.panel)]


def _option(setting: Setting, panel: str | None) -> Any:
    text = setting.help
    if setting.default not in (None, ()) or setting.unset != UNSET:
        text += f" [dim](default: {setting.show(setting.default)})[/dim]"
    flag = setting.flag
    if setting.is_switch:
        flag += "/" + _OPPOSITES.get(setting.key, f"--no-{flag[2:]}")
    metavar = "" if setting.is_switch else setting.metavar
    return typer.Option(flag, metavar=metavar, help=text, show_default=False, rich_help_panel=panel)


def asked_labels(settings: Resolved) -> LabelSet | None:
    """The labels of ``--label`` or ``--labels``; None where neither is given. Those typed come before a file's.

    A :class:`UsageError` where both are given as options.
    """
    texts, path = settings["label"], settings["labels"]
    if texts and settings.sources["labels"] == "--labels":
        raise UsageError("--label and --labels exclude each other.", hint="Leave one out.")
    return LabelSet.from_texts(texts) if texts else None if path is None else parse_labels(path)


def backbone_faults(settings: Resolved) -> list[UsageError]:
    """What is wrong with backbone, templates and paths of weights, as far as can be told without reading weights."""
    from avfewshot.encoders.presets import load_preset
    from avfewshot.prompts import load_templates

    faults: list[UsageError] = []
    if (preset := collect(faults, lambda: load_preset(settings["backbone"]))) is not None:
        collect(faults, lambda: _check_walk(settings.config, preset))
    if settings["templates"] is not None:
        collect(faults, lambda: load_templates(settings["templates"]))
    known = settings_of(type(settings.config))
    for key in (name for name in ("adapter", "clip_weights", "clap_weights", "roberta") if name in known):
        path = settings[key]
        if path is None:
            continue
        option = settings.named(key)
        if settings["weights"] == "random" and key.endswith("_weights"):
            hint = "Leave one of them out."
            faults.append(UsageError(f"{option} and {settings.named('weights')} random exclude each other.", hint=hint))
        elif not path.exists() and not (key == "adapter" and adapter_folder(path).is_dir()):
            faults.append(UsageError(f"{option} {path}: there is nothing at this path.", hint="Check the path."))
    return faults


def _check_walk(config: Any, preset: Preset) -> None:
    """Tell before gigabytes are fetched in vain what a backbone of plain towers cannot do."""
    from avfewshot.config import ADAPTER_METHODS, NONE, CompareConfig, FewshotConfig, PretrainConfig, SupervisedConfig
    from avfewshot.encoders.presets import not_walkable

    asked: list[str] = []
    if isinstance(config, FewshotConfig | CompareConfig):
        methods = config.methods if isinstance(config, CompareConfig) else [config.training.method]
        asked = [name for name in methods if name in (*ADAPTER_METHODS, "maple", "clip-lora")]
    elif isinstance(config, PretrainConfig) and config.training.adapter != NONE:
        asked = [f"The adapter {config.training.adapter}"]
    elif isinstance(config, SupervisedConfig):
        asked = ["A supervised task"]
    if not isinstance(config, SupervisedConfig):
        preset.require_texts()
    if asked and not preset.walkable:
        raise not_walkable(", ".join(asked), preset.name)


def adapter_folder(path: Path) -> Path:
    """The folder of an adapter; one from the hub is fetched, before anything heavy is loaded, and its commit said."""
    if not str(path).startswith("hf:/"):
        return path
    import warnings

    from avfewshot.cli.terminal import say_warning
    from avfewshot.models.hub import local_adapter

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        folder = local_adapter(path)
    for note in notes:
        say_warning(str(note.message))
    return folder
