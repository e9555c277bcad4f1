"""Settings: flag > environment ``AVFS_*`` > ``avfs.toml`` in the current folder > default, and where each came from.

What can be set is listed once, in :data:`TABLES`; the command line takes its options, their help and their checks from
there. Importing this module imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from avfewshot.errors import UsageError, flatten, raise_faults
from avfewshot.setting_kinds import Choice, Device, Flag, Kind, PathText, Text, Whole

CONFIG_NAME = "avfs.toml"
UNSET = "not set"


@dataclass(frozen=True)
class Setting:
    """Something that can be set.

    Attributes:
        name: Key in ``avfs.toml``, with underscores.
        kind: Reads and checks its values.
        default: Value when nobody sets it; None means that the program decides.
        help: One line for people.
        unset: What to show for a default of None.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    unset: str = UNSET

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    def shown_default(self) -> str:
        """The default as the person would write it."""
        return self.unset if self.default is None else self.kind.show(self.default)


MODEL = (
    Setting("backbone", Text(), "base", "Preset (`avfs weights list`) or a YAML file of your own."),
    Setting(
        "weights", Choice("pretrained", "random"), "pretrained", "`random` needs no files; its results mean nothing."
    ),
    Setting("seed", Whole(0), 0, "Seed of random weights."),
    Setting("clip_weights", PathText(), None, "CLIP checkpoint by path, instead of the preset's.", "the preset's"),
    Setting("clap_weights", PathText(), None, "CLAP checkpoint by path, instead of the preset's.", "the preset's"),
    Setting("roberta", PathText(), None, "Folder with RoBERTa's tokenizer files, instead of the hub's.", "the hub's"),
    Setting("device", Device(), "auto", "Where to compute."),
    Setting("precision", Choice("auto", "fp32", "bf16", "fp16"), "auto", "Number format of the towers."),
    Setting("batch_size", Whole(1, or_word="auto"), "auto", "Seconds of clips that go through the towers at once."),
    Setting("modality", Choice("av", "visual", "audio"), "av", "What to use: both, only sight, only sound."),
    Setting("frame_backend", Choice("auto", "decord", "pyav"), "auto", "What decodes the frames."),
    Setting("fusion", Choice("weighted", "product"), "weighted", "How the two modalities are joined."),
    Setting("pool", Choice("mean", "event"), "event", "How the seconds of a clip are pooled."),
    Setting("templates", Text(), None, "Prompt templates: a name, a YAML file or a text file.", "the backbone's"),
)
ZEROSHOT = (
    *MODEL,
    Setting(
        "adapter",
        PathText(),
        None,
        "Folder of a training run or a checkpoint, to predict with what was trained. What is not set is then as it was "
        "trained: backbone, templates, fusion, pool.",
    ),
    Setting("labels", PathText(), None, "Label file, needed: one a line; `label: a longer wording`."),
    Setting("topk", Whole(1), 5, "Labels to show for each clip in tables and reports."),
    Setting("segments", Flag(), False, "Also say what each second holds."),
    Setting("format", Choice("table", "json", "jsonl", "csv", "all"), "table", "Form of the results."),
    Setting("recursive", Flag(), True, "Look into sub-folders."),
)
_OF_TRAINING = ("backbone", "weights", "clip_weights", "clap_weights", "roberta", "device", "precision")
TRAINING = (
    *(setting for setting in MODEL if setting.name in (*_OF_TRAINING, "frame_backend", "templates")),
    Setting("config", PathText(), None, "YAML file with training settings, named as the options."),
    Setting("runs", PathText(), Path("runs"), "Folder that run folders are made in."),
)
DATA = (
    Setting("root", PathText(), None, "Folder that holds the data sets."),
    Setting("ave", PathText(), None, "Folder of AVE, where it is not below `root`."),
    Setting("llp", PathText(), None, "Folder of LLP, where it is not below `root`."),
    Setting("vggsound", PathText(), None, "Folder of VGG-Sound, where it is not below `root`."),
)

TABLES: dict[str, dict[str, Setting]] = {
    "zeroshot": {setting.name: setting for setting in ZEROSHOT},
    "fewshot": {setting.name: setting for setting in TRAINING},
    "pretrain": {setting.name: setting for setting in TRAINING},
    "data": {setting.name: setting for setting in DATA},
}
"""Settings of each command, which are also the tables of ``avfs.toml``."""

# Where a key outside every table counts: for all commands that know it. Data folders live in their own table only.
_SHARED_TABLES = tuple(name for name in TABLES if name != "data")


@dataclass(frozen=True)
class Sourced:
    """A value and where it came from.

    Attributes:
        value: The checked value.
        source: ``"--flag"``, ``"AVFS_NAME"``, ``"avfs.toml"``, ``"avfs.toml [table]"`` or ``"default"``.
    """

    value: Any
    source: str


@dataclass
class Resolved:
    """The settings of one command.

    Attributes:
        values: By name.
        faults: What was wrong; the setting then has its default, so that further checks can go on.
    """

    values: dict[str, Sourced] = field(default_factory=dict)
    faults: list[UsageError] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def source(self, name: str) -> str:
        """Where the value of `name` came from."""
        return self.values[name].source

    def check(self) -> Resolved:
        """Raise what was wrong, all at once; return itself otherwise.

        Raises:
            UsageError: A value or a key is wrong.
        """
        raise_faults(self.faults)
        return self


def environment_name(table: str, setting: Setting) -> str:
    """The environment variable of a setting, for example ``AVFS_BATCH_SIZE`` or ``AVFS_DATA_ROOT``."""
    return f"AVFS_{'DATA_' if table == 'data' else ''}{setting.name.upper()}"


def resolve(
    table: str,
    flags: Mapping[str, Any] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """Find the value of every setting of a command.

    Args:
        table: A key of :data:`TABLES`.
        flags: Values from the command line by setting name, as text or already typed; None means not given.
        folder: Where ``avfs.toml`` is looked for; the current folder unless told.
        environ: Environment variables; those of the process unless told.

    Returns:
        Values with their sources, and the faults met on the way (nothing is raised: see :meth:`Resolved.check`).
    """
    folder = Path(folder) if folder is not None else Path()
    environ = os.environ if environ is None else environ
    flags = flags or {}
    resolved = Resolved()
    try:
        document = read_config(folder)
    except UsageError as error:
        resolved.faults.extend(flatten(error))
        document = {}
    for name, setting in TABLES[table].items():
        candidates = []
        if flags.get(name) is not None:
            candidates.append((flags[name], setting.flag))
        variable = environment_name(table, setting)
        if environ.get(variable):  # an empty variable counts as not set, as in most programs
            candidates.append((environ[variable], variable))
        if name in document.get(table, {}):
            candidates.append((document[table][name], f"{CONFIG_NAME} [{table}]"))
        if table in _SHARED_TABLES and name in document.get("", {}):
            candidates.append((document[""][name], CONFIG_NAME))
        resolved.values[name] = Sourced(setting.default, "default")
        if not candidates:
            continue
        raw, source = candidates[0]
        from_text = not source.startswith(CONFIG_NAME)
        try:
            resolved.values[name] = Sourced(setting.kind.parse(raw, from_text=from_text), source)
        except ValueError as error:
            if from_text:  # read_config has already told about the file
                resolved.faults.append(UsageError(f"{source}: {error}"))
    return resolved


def read_config(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read and check the whole of ``avfs.toml``.

    Args:
        folder: The folder it may lie in.

    Returns:
        Raw values by table; keys outside every table under ``""``. Empty without a file.

    Raises:
        UsageError: The file cannot be read or is not TOML, a key is unknown or a value is of the wrong type: all of
            these at once, with the valid keys.
    """
    path = Path(folder) / CONFIG_NAME
    parsed = _parse_toml(path)
    top: dict[str, Any] = {}
    document: dict[str, dict[str, Any]] = {"": top}
    faults: list[UsageError] = []
    shared = {name: setting for table in _SHARED_TABLES for name, setting in TABLES[table].items()}
    for key, value in parsed.items():
        if isinstance(value, dict):
            if key not in TABLES:
                faults.append(_unknown(path, f"[{key}]", key, TABLES, "tables"))
                continue
            document[key] = _checked(path, f"[{key}] ", value, TABLES[key], faults)
        elif key in TABLES:
            faults.append(UsageError(f"{path}: {key} is a table.", hint=f"Write `[{key}]` on a line of its own."))
        else:
            top.update(_checked(path, "", {key: value}, shared, faults, taken=top))
    raise_faults(faults)
    return document


def _checked(
    path: Path,
    where: str,
    raw: Mapping[str, Any],
    known: Mapping[str, Setting],
    faults: list[UsageError],
    taken: Iterable[str] = (),
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in known:
            faults.append(_unknown(path, f"{where}{key}", name, known, "keys"))
        elif name in values or name in taken:
            faults.append(UsageError(f"{path}: {where}{key}: {name} is given twice.", hint="Remove one of them."))
        else:
            try:
                known[name].kind.parse(value, from_text=False)
                values[name] = value
            except ValueError as error:
                faults.append(UsageError(f"{path}: {where}{key}: {error}"))
    return values


def _unknown(path: Path, shown: str, name: str, valid: Iterable[str], plural: str) -> UsageError:
    valid = sorted(valid)
    close = get_close_matches(name, valid, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return UsageError(f"{path}: {shown} is unknown.{guess}", hint=f"Valid {plural}: {', '.join(valid)}.")


def _parse_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        # TOML is UTF-8 by definition; editors on Windows like to add a byte order mark.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8.", hint="Save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        hint = 'Texts need quotes: `backbone = "tiny"`.'
        raise UsageError(f"{path}: is not valid TOML: {str(error).rstrip('.')}.", hint=hint) from None
