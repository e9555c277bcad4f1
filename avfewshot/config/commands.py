"""What each command can be told: a model a command, made of the groups that several of them share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from avfewshot.config.fields import Setting, Settings, section, setting, settings_of
from avfewshot.config.kinds import (
    A_TASK,
    ADAPTERS,
    COST,
    DATA,
    DEVICES,
    HEARD,
    METHOD,
    MODEL,
    NONE,
    OUTPUT,
    TRAINING,
    AudioContext,
    Auto,
    Background,
    Contexts,
    Count,
    Device,
    Factor,
    FilePath,
    Folder,
    Folders,
    Fusion,
    Names,
    Pool,
    Precision,
    Real,
    Secret,
    Seeds,
    Shots,
    Task,
    Text,
    Texts,
    Tracker,
)
from avfewshot.config.training import BackboneConfig, PretrainingConfig, SupervisedTrainingConfig, TrainingConfig

COMMANDS: dict[str, type[CommandConfig]] = {}
"""The commands by the name of their table."""


class CommandConfig(Settings):
    """All that a command is asked for; with ``run.json`` holding its ``model_dump``."""

    table: ClassVar[str]

    def __init_subclass__(cls, *, table: str, **kwargs: Any) -> None:
        """Make it known by its table."""
        super().__init_subclass__(**kwargs)
        cls.table = table
        COMMANDS[table] = cls


class TowersConfig(BackboneConfig, panel=MODEL):
    """How clips are embedded."""

    precision: Precision = setting("auto", "Number format of the towers.", saved=True)
    batch_size: Count | Auto = setting("auto", "Seconds of clips that go through the towers at once.", saved=True)
    seed: Annotated[int, Ge(0)] = setting(0, "Seed of random weights.", saved=True)
    audio_context: AudioContext = setting("second", HEARD, saved=True)


class InferenceConfig(TowersConfig):
    """How clips are classified."""

    adapter: FilePath | None = setting(
        None,
        "Folder of a training run or a checkpoint, to predict with what was trained. What is not set is then as it was "
        "trained: backbone, templates, fusion, pool.",
        panel=MODEL,
        saved=True,
    )
    modality: Literal["av", "visual", "audio"] = setting(
        "av", "What to use: both, only sight, only sound.", panel=METHOD, saved=True
    )
    fusion: Fusion = setting("weighted", "How the two modalities are joined.", panel=METHOD, saved=True)
    pool: Pool = setting("event", "How the seconds of a clip are pooled.", panel=METHOD, saved=True)


class EngineConfig(Settings, panel=COST):
    """What distributes the work."""

    engine: Literal["local", "ray"] = setting(
        "local", "What distributes the work: this process, or Ray, on many machines."
    )
    address: Text | None = setting(
        None, "Ray cluster, as HOST:PORT or `auto`.", metavar="ADDRESS", unset="Ray on this machine"
    )


class LabelsConfig(Settings):
    """What clips are called."""

    labels: FilePath | None = setting(
        None, "Label file: one a line; `label: a longer wording`. `-` reads standard input.", saved=True
    )
    label: Texts = setting((), "A label on the command line, instead of a file; may be repeated.")


class OutputConfig(LabelsConfig):
    """What is classified and where the answer goes."""

    recursive: bool = setting(True, "Look into sub-folders.", saved=True)
    store: Folder | None = setting(
        None, "Store of `avfs embed`: its clips are not decoded again; without PATH, they are what is classified."
    )
    topk: Count = setting(5, "Labels to show for each clip in tables and reports.", panel=OUTPUT, saved=True)
    segments: bool = setting(False, "Also say what each second holds.", panel=OUTPUT, saved=True)
    multi_label: bool = setting(
        False,
        "Also give all labels that a clip carries: by thresholds that a run has from left-out clips; without a run, "
        "those that stand out among the labels.",
        panel=OUTPUT,
    )
    reject: bool = setting(
        False, "With a run: answer `unknown` where a clip is like nothing that was learnt.", panel=OUTPUT
    )
    format: Literal[
        "table", "json", "jsonl", "csv", "csv-segments", "srt", "vtt", "eaf", "labelstudio", "fiftyone", "all"
    ] = setting(
        "table",
        "Form of the results; srt, vtt (subtitles) and eaf (ELAN) are timelines, one file a clip; labelstudio is its "
        "tasks, fiftyone a folder that it imports.",
        panel=OUTPUT,
        saved=True,
    )
    output: str | None = setting(
        None,
        "File for the results, whose suffix chooses the format where --format does not; for `--format all` a folder or "
        "a path without suffix.",
        panel=OUTPUT,
        metavar="PATH",
        unset="stdout",
    )
    resume: bool = setting(True, "Go on with a .jsonl file where it stopped, or begin it anew.", panel=OUTPUT)
    report: str | None = setting(
        None,
        "Also write one self-contained page with pictures, scores and timelines.",
        panel=OUTPUT,
        metavar="FILE.html",
    )
    overlay: Folder | None = setting(
        None, "Also write each clip as a video with its labels burnt in; the folder is made.", panel=OUTPUT
    )


class TaskConfig(Settings, panel=A_TASK):
    """A data set to evaluate on instead of files."""

    task: str | None = setting(
        None,
        "Evaluate on the test clips of a data set: no labels, no PATH.",
        metavar="ave|ave_cls|llp_cls|vggsound_cls",
    )
    root: Folder | None = setting(None, "Folder of the task's data set.")
    media: Folders = setting((), "Folder of its clips, if elsewhere; may be repeated.")
    list_file: FilePath | None = setting(None, "For vggsound_cls: the list to read.", flag="--list", metavar="FILE")
    vggsounder: FilePath | None = setting(
        None, "For vggsound_cls: several labels a clip, by vggsounder.csv.", metavar="FILE"
    )
    background: Background | None = setting(
        None, "For ave: how seconds without an event are told.", unset="threshold, by validation"
    )


class ZeroshotConfig(CommandConfig, table="zeroshot"):
    """``avfs zeroshot``."""

    output: OutputConfig = section(OutputConfig)
    model: InferenceConfig = section(InferenceConfig)
    task: TaskConfig = section(TaskConfig)
    distribution: EngineConfig = section(EngineConfig)


class ExportModelConfig(BackboneConfig):
    """What is exported; it computes on the CPU in fp32."""

    adapter: FilePath | None = setting(None, "A run folder, or that of an adapter.", flag="RUN", saved=True)
    seed: Annotated[int, Ge(0)] = setting(0, "Seed of random weights.", panel=MODEL, saved=True)


class ExportConfig(LabelsConfig, CommandConfig, table="export"):
    """``avfs export``; without labels, those of the run count."""

    onnx: Folder | None = setting(None, "Folder for the graphs; made if it is not there.", metavar="DIR")
    model: ExportModelConfig = section(ExportModelConfig)


class ServeConfig(LabelsConfig, CommandConfig, table="serve"):
    """``avfs serve``; the page can change the labels."""

    recursive: bool = setting(True, "Look into sub-folders.", saved=True)
    model: InferenceConfig = section(InferenceConfig)
    host: Text = setting(
        "127.0.0.1", "Address to listen at; any but this machine's own needs the token that is then printed."
    )
    port: Annotated[int, Ge(0), Le(65535)] = setting(8765, "Port; 0: any free one.")
    token: Secret | None = setting(
        None,
        "What a client has to know; better set as AVFS_TOKEN, which other users cannot see.",
        saved=True,
        unset="made up where --host needs one",
    )
    max_upload: Count = setting(1000, "Largest upload, in MB.")
    store: Folder | None = setting(None, "Store of `avfs embed`, to take embeddings from.")
    runs: Folder = setting(Path("runs"), "Folder that runs are saved in.", metavar="PATH", saved=True)


class SupervisedRunConfig(Settings):
    """Where a training leaves its files."""

    config: FilePath | None = setting(None, "YAML file with training settings, named as the options.", saved=True)
    runs: Folder = setting(Path("runs"), "Folder that run folders are made in.", metavar="PATH", saved=True)
    name: str | None = setting(None, "What the run folder is called.")
    tracker: Tracker | None = setting(None, "Also send metrics there, as they come; needs the extra of that name.")


class RunConfig(SupervisedRunConfig):
    """Where a training begins and leaves its files."""

    adapter: FilePath | None = setting(
        None, "Run or checkpoint to begin with, such as a pretrained one.", panel=ADAPTERS, metavar="RUN",
        unset="new adapters",
    )  # fmt: skip


class ClipsConfig(Settings, panel=DATA):
    """Where the clips of a few-shot training are."""

    data: Folder | None = setting(
        None, "Clips of your own: DIR/CLASS/*.mp4, or DIR/train/CLASS/*.mp4 with val and test."
    )
    root: Folder | None = setting(None, "Folder of the task's data set.")
    media: Folders = setting((), "Folder of its clips, if elsewhere; may be repeated.")
    list_file: FilePath | None = setting(None, "For vggsound_cls: the list to read.", flag="--list", metavar="FILE")
    store: Folder | None = setting(None, "Store of `avfs embed`, for embeddings of clips that it holds.")


class FewshotConfig(CommandConfig, table="fewshot"):
    """``avfs fewshot``."""

    training: TrainingConfig = section(TrainingConfig)
    run: RunConfig = section(RunConfig)
    data: ClipsConfig = section(ClipsConfig)
    model: BackboneConfig = section(BackboneConfig)


class CompareConfig(CommandConfig, table="compare"):
    """``avfs compare``."""

    task: Task = setting("folder", "What is learnt and how it is judged.")
    shots: Shots = setting((1, 2, 4, 8, 16), "Training clips of each class, one table for each.")
    methods: Names = setting(
        ("auto",), "Further methods beside those of `auto`, by comma: any of `avfs fewshot --method`, dgsct too."
    )
    seeds: Seeds = setting((1, 2, 3), "Draws of the support and, where something is trained, trainings.")
    audio_context: Contexts = setting(("second",), f"{HEARD} Both, by comma, stand side by side.", panel=MODEL)
    protocol: Literal["mteb"] | None = setting(
        None,
        'A row by a public protocol, for ave_cls: mteb\'s zero-shot (prompt "a video of {name}", top-1).',
        unset=NONE,
    )
    efficiency: bool = setting(
        False, "Parameters and GFLOPs of what is trained through the towers (Table 6), beside the published; no data."
    )
    ablate: Literal["modules", "directions", "factors"] | None = setting(
        None,
        "DG-SCT with parts of it: its modules S, C, T (Table 5 of the paper), its directions (Table 8), or sweeps of "
        "alpha, beta and gamma (Table 9, Fig. 8). Each row is trained.",
        unset=NONE,
    )
    epochs: Count | None = setting(None, "Of what is trained, at most.", panel=TRAINING, unset="by the support")
    max_steps: Count | None = setting(
        None, "Optimizer steps of a training, at most; for a short trial.", panel=TRAINING, unset="as the epochs say"
    )
    lr: Annotated[Real, Gt(0)] | None = setting(None, "Learning rate of adapters.", panel=TRAINING, unset="3e-4")
    gate_lr: Factor | None = setting(None, "Factor of it for gates, which begin at zero.", panel=TRAINING, unset="1")
    batch_size: Count | None = setting(None, "Clips of a batch of adapters.", panel=TRAINING, unset="2")
    guided_layers: Count | None = setting(
        None, "Paired layers that have adapters, counted from the last.", panel=ADAPTERS, unset="all"
    )
    alpha: Factor | None = setting(None, "Factor of DG-SCT's channel attention.", panel=ADAPTERS, unset="0.2")
    beta: Factor | None = setting(None, "Factor of its spatial attention.", panel=ADAPTERS, unset="0.05")
    gamma: Factor | None = setting(None, "Factor of its temporal gate.", panel=ADAPTERS, unset="0.05; 0.01 for ave")
    runs: Folder = setting(Path("runs"), "Folder that run folders are made in.", metavar="PATH", saved=True)
    name: str | None = setting(None, "What the folder is called; the same name goes on where it stopped.")
    data: ClipsConfig = section(ClipsConfig)
    model: BackboneConfig = section(BackboneConfig)

    @property
    def training(self) -> TrainingConfig:
        """How what is compared is trained; in an ablation the trained logits stand alone, so that rows can differ."""
        own = {"method": "dgsct", "blend": 1.0} if self.ablate else {"tune": False}
        names = ("epochs", "max_steps", "lr", "gate_lr", "batch_size", "guided_layers", "alpha", "beta", "gamma")
        given = {key: value for key in names if (value := getattr(self, key)) is not None}
        return TrainingConfig(task=self.task, seeds=self.seeds, **own, **given)


STORE = "Folder of the store."


class EmbedConfig(CommandConfig, table="embed"):
    """``avfs embed``."""

    store: Folder | None = setting(None, "Folder of the store; made where there is none.")
    recursive: bool = setting(True, "Look into sub-folders.", saved=True)
    retry: bool = setting(False, "Try files again that could not be embedded before.")
    workers: Annotated[int, Ge(0)] = setting(2, "Processes that decode clips ahead.", panel=MODEL)
    model: TowersConfig = section(TowersConfig)
    distribution: EngineConfig = section(EngineConfig)


class FindConfig(CommandConfig, table="find"):
    """``avfs find``."""

    query: Text | None = setting(None, "What to look for, in words.", flag="QUERY", metavar="[QUERY]")
    store: Folder | None = setting(None, STORE)
    by: Literal["sight", "sound", "both"] = setting("both", "What is compared.")
    like: Text | None = setting(
        None, "Instead of words: a clip, or some of its seconds.", metavar="CLIP[:START-END]", unset="by words"
    )
    top: Count = setting(20, "How many clips to show.")
    audio_context: AudioContext | None = setting(
        None, "How the store must have heard its clips; another one is refused.", unset="the store's"
    )
    format: Literal["table", "json", "csv"] = setting("table", "Form of the answer.")
    device: Device = setting("auto", "Where words are encoded.", saved=True)


class SuggestConfig(CommandConfig, table="suggest"):
    """``avfs suggest``."""

    store: Folder | None = setting(None, STORE)
    run: Folder | None = setting(None, "Folder of a few-shot run.")
    count: Count = setting(20, "How many clips to name.")
    format: Literal["table", "json", "csv"] = setting("table", "Form of the answer.")


class ListConfig(Settings, panel=DATA):
    """Where the clips of a pretraining are."""

    root: Folder | None = setting(None, "Folder with the list and the videos.")
    media: Folders = setting((), "Folder of the videos, if elsewhere; may be repeated.")
    list_file: FilePath | None = setting(None, "The list to read.", flag="--list", metavar="FILE")
    shards: Folder | None = setting(None, "Prepared shards instead of videos.")
    against: Folders = setting((), "Folder of a data set that will be evaluated on; may be repeated.")
    keep_leaks: bool = setting(False, "Also train on videos of their val and test splits.")
    val_clips: Annotated[int, Ge(0)] = setting(1000, "Validation clips at most.")


class RanksConfig(Settings, panel=DEVICES):
    """The devices that a pretraining is spread over; another call of it may have others."""

    devices: Count | Auto = setting(1, "GPUs (or processes) a machine.")
    nodes: Count = setting(1, "Machines.")
    strategy: Literal["auto", "ddp"] = setting("auto", "How ranks work together.")


class PretrainConfig(CommandConfig, table="pretrain"):
    """``avfs pretrain``."""

    dataset: Literal["vggsound40k", "vggsound", "ovave"] | None = setting(
        None, "vggsound40k, vggsound or ovave.", flag="DATASET", metavar="DATASET"
    )
    training: PretrainingConfig = section(PretrainingConfig)
    run: RunConfig = section(RunConfig)
    data: ListConfig = section(ListConfig)
    ranks: RanksConfig = section(RanksConfig)
    model: BackboneConfig = section(BackboneConfig)


class SupervisedDataConfig(Settings, panel=DATA):
    """Where the data set of a supervised task is."""

    root: Folder | None = setting(None, "Folder of the task's data set.")
    media: Folders = setting((), "Folder of its clips, if elsewhere; may be repeated.")


class SupervisedConfig(CommandConfig, table="train"):
    """``avfs train``."""

    task: Text | None = setting(None, "ave, avvp, avs or avqa.", flag="TASK", metavar="TASK")
    training: SupervisedTrainingConfig = section(SupervisedTrainingConfig)
    run: SupervisedRunConfig = section(SupervisedRunConfig)
    data: SupervisedDataConfig = section(SupervisedDataConfig)
    model: BackboneConfig = section(BackboneConfig)


class DataFoldersConfig(CommandConfig, table="data"):
    """``[data]``: where data sets lie. Its variables begin with ``AVFS_DATA_``."""

    root: FilePath | None = setting(None, "Folder that holds the data sets.", saved=True)
    ave: FilePath | None = setting(None, "Folder of AVE, where it is not below `root`.", saved=True)
    llp: FilePath | None = setting(None, "Folder of LLP, where it is not below `root`.", saved=True)
    vggsound: FilePath | None = setting(None, "Folder of VGG-Sound, where it is not below `root`.", saved=True)


@functools.cache
def table_settings(table: str) -> dict[str, Setting]:
    """What a table of ``avfs.toml`` and the environment can set, by key."""
    return {key: single for key, single in settings_of(COMMANDS[table]).items() if single.saved}
