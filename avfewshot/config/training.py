"""What trainings can be told: towers, adapters, few-shot training, pretraining, supervised tasks."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from avfewshot.adapters.settings import SETTINGS
from avfewshot.config.fields import Rule, Settings, setting
from avfewshot.config.kinds import (
    ADAPTERS,
    AUTO,
    BY_PATH,
    COST,
    DATA,
    HEARD,
    LIGHT_METHODS,
    METHOD,
    MODEL,
    NONE,
    TRAINING,
    TUNED_METHODS,
    AdapterKind,
    AudioContext,
    Auto,
    Background,
    Count,
    Device,
    Factor,
    FilePath,
    Fusion,
    Method,
    Pool,
    Precision,
    Real,
    Seed,
    Seeds,
    Size,
    Task,
    Text,
)


class BackboneConfig(Settings, panel=MODEL):
    """Which frozen towers there are and where they compute."""

    backbone: Text = setting("base", "Preset (`avfs weights list`) or a YAML file of your own.", saved=True)
    weights: Literal["pretrained", "random"] = setting(
        "pretrained", "`random` needs no files; its results mean nothing.", saved=True
    )
    device: Device = setting("auto", "Where to compute.", saved=True)
    frame_backend: Literal["auto", "decord", "pyav"] = setting("auto", "What decodes the frames.", saved=True)
    templates: Text | None = setting(
        None, "Prompt templates: a name, a YAML file or a text file.", panel=METHOD, unset="the backbone's", saved=True
    )
    clip_weights: FilePath | None = setting(
        None,
        "Checkpoint of CLIP, or of the Swin in its place, by path, instead of the preset's.",
        panel=BY_PATH,
        unset="the preset's",
        saved=True,
    )
    clap_weights: FilePath | None = setting(
        None, "CLAP checkpoint by path, instead of the preset's.", panel=BY_PATH, unset="the preset's", saved=True
    )
    roberta: FilePath | None = setting(
        None,
        "Folder with RoBERTa's tokenizer files, instead of the hub's.",
        panel=BY_PATH,
        unset="the hub's",
        saved=True,
    )


class AdapterConfig(Settings, panel=ADAPTERS):
    """The adapters and projectors between the towers: what decides which tensors there are, and what they do.

    The settings of DG-SCT are Duan et al.'s (NeurIPS 2023, arXiv 2311.05152) where the paper gives them.
    """

    adapter: AdapterKind = setting(
        "dgsct", "What connects the towers; docs/fewshot.md says which settings are whose.", flag="--adapter-kind"
    )
    alpha: Factor = setting(0.2, "Factor of the channel attention (Eq. 6).")
    beta: Factor = setting(0.05, "Factor of the spatial attention (Eq. 6).")
    gamma: Factor = setting(0.05, "Factor of the temporal gate (Eq. 7); 0.01 for ave, 0.05 elsewhere.")
    channel: bool = setting(True, "Channel attention (C, Eq. 3).")
    spatial: bool = setting(True, "Spatial attention (S, Eq. 4); stg_cma: the step behind attention.")
    temporal: bool = setting(True, "Temporal gate in the last layer (T, Eq. 5); stg_cma: the step along time.")
    a2v: bool = setting(True, "Sound guides sight.")
    v2a: bool = setting(True, "Sight guides sound.")
    variant: Literal["paper", "compact", "released-8-heads"] = setting(
        "paper",
        "Channel attention as printed (Eq. 3), or in the space of `--hidden`; stg_cma: its code ran ViT-B/16 with 8 "
        "heads instead of 12.",
    )
    hidden: Count | Auto = setting(
        "auto", "Width of the space of attention maps; `auto`: a third of CLIP's (256 for base)."
    )
    output: Literal["gate", "bottleneck"] = setting("gate", "How guidance ends: a factor a channel, or an MLP.")
    bottleneck: Count = setting(64, "Width of that MLP.")
    reduction: Count | Auto = setting("auto", "lavish, stg_cma: what bottlenecks divide the width by; `auto`: 8.")
    latents: Count = setting(2, "lavish: tokens that gather the other modality.")
    groups: Count = setting(2, "lavish: groups of the bottleneck's maps.")
    batch_norm: bool = setting(True, "lavish: batch norm behind the bottleneck's maps.")
    layer_norm: bool = setting(True, "lavish: layer norm before and behind the bottleneck.")
    bridge: Literal["linear", "published"] = setting(
        "linear", "lavish, unequal widths: a map of channels, or of tokens too as in DG-SCT's comparison."
    )
    global_step: bool = setting(True, "stg_cma: the step behind the MLP.")
    exchange: bool = setting(True, "stg_cma: the modalities exchange; else each is adapted alone.")
    positions: Count = setting(10, "stg_cma: segments that are told apart in time.")
    drop_path: Annotated[Real, Ge(0), Le(0.9)] = setting(
        0.2, "stg_cma: share of steps along time that training leaves out in the last layer."
    )
    guided_layers: Count | Literal["all"] = setting(
        "all", "Paired layers that have adapters, counted from the last; fewer are faster and learn from less."
    )
    projector: Literal["residual", "mlp", "none"] = setting("residual", "Trainable maps on all embeddings (Eq. 8).")

    @property
    def adapter_title(self) -> str:
        """What the chosen adapter is called in messages."""
        return {"dgsct": "DG-SCT", "lavish": "LAVISH", "stg_cma": "STG-CMA", NONE: "projectors"}.get(
            self.adapter, self.adapter
        )

    @property
    def adapter_settings(self) -> dict[str, Any]:
        """The chosen adapter's own, without what is ``"auto"``; one of another package gets all there are."""
        kind = SETTINGS.get(self.adapter)
        names = [name for name in SHAPING if name not in ("adapter", "guided_layers", "projector")]
        names = names if kind is None else [one.name for one in fields(kind)]
        return {name: value for name in names if (value := getattr(self, name)) != AUTO}


SHAPING = tuple(AdapterConfig.model_fields)
"""Fields that a training takes over from the checkpoint that it begins with."""


class TrainerConfig(AdapterConfig, panel=TRAINING):
    """What a few-shot training and a pretraining have in common."""

    objective: Literal["contrastive", "classes"] = setting(
        "classes", "Candidates: texts of the batch, or all.", panel=METHOD
    )
    matching: Literal["softmax", "cosine"] = setting(
        "softmax", "What the modality weights are made of (Eq. 11).", panel=METHOD
    )
    fusion: Fusion = setting("weighted", "How the two modalities are joined.", panel=METHOD)
    pool: Pool = setting("event", "How the seconds of a clip are pooled; the paper's is mean.", panel=METHOD)
    blend: Annotated[Real, Ge(0), Le(1)] | Auto = setting(
        "auto", "Share of the trained logits beside the zero-shot ones; `auto`: validation.", panel=METHOD
    )
    window: Count = setting(10, "Seconds that go through the adapters together.", panel=METHOD)

    optimizer: Literal["adam", "adamw"] = setting("adam", "Adam is the paper's.")
    lr: Annotated[Real, Gt(0)] = setting(3e-4, "Learning rate.")
    gate_lr: Factor = setting(1.0, "Factor of the learning rate of the adapters' gates, which begin at zero.")
    weight_decay: Factor = setting(0.0, "Weight decay.")
    batch_size: Count = setting(2, "Clips of a batch.")
    accumulation: Count = setting(1, "Batches whose gradients are summed up for a step.")
    clip_norm: Factor = setting(1.0, "Bound on the gradient's norm; 0: none. Not given by the paper.")
    schedule: Literal["constant", "cosine", "step"] = setting("cosine", "Of the learning rate; not in the paper.")
    warmup: Annotated[Real, Ge(0), Le(0.5)] = setting(
        0.0, "Share of all steps in which the learning rate rises from zero."
    )
    step_epochs: Count = setting(2, "Epochs between the steps of the step schedule.")
    step_factor: Annotated[Real, Gt(0), Le(1)] = setting(0.1, "What a step multiplies the learning rate with.")
    epochs: Count | Auto = setting(AUTO, "Passes over the clips, at most.")
    validate_every: Count | Auto = setting(
        "auto", "Epochs between validations; `auto`: one takes no longer than the training does."
    )

    precision: Precision = setting("auto", "Number format of the towers.", panel=MODEL, saved=True)
    checkpointing: bool | Auto = setting(
        "auto",
        "Compute activations twice: half as slow again, far less memory; `auto`: for large towers, if not on a GPU of "
        "16 GB or more.",
        panel=COST,
    )
    cuda_graphs: bool = setting(
        False,
        "On a single GPU: record the passes of a step once and replay them; faster for small batches.",
        panel=COST,
    )
    micro_batch: Count | Auto = setting(
        "auto", "Clips at once; `auto` begins with the batch and shrinks when memory ends.", panel=COST
    )
    cache_size: Size = setting(20_000_000_000, "Bound on decoded clips kept on disk; 0: none.", panel=COST)
    workers: Annotated[int, Ge(0)] = setting(
        2, "Processes that decode clips ahead of the model; 0: one clip at a time.", panel=COST
    )

    @property
    def plain_fusion(self) -> str:
        """That of all that is not trained."""
        return "weighted" if self.fusion == AUTO else self.fusion

    RULES: ClassVar[tuple[Rule, ...]] = (
        (
            ("adapter", "a2v", "v2a"),
            lambda v: v["adapter"] != NONE and not (v["a2v"] or v["v2a"]),
            "a2v and v2a are both off: the adapter would do nothing.",
            "Switch one of them on, or set adapter to none.",
        ),
        (
            ("adapter", "variant"),
            lambda v: v["variant"] == "released-8-heads" and v["adapter"] != "stg_cma",
            "variant released-8-heads is of adapter stg_cma.",
            "Use --adapter-kind stg_cma, or another variant.",
        ),
        (
            ("adapter", "projector"),
            lambda v: v["adapter"] == NONE and v["projector"] == NONE,
            "adapter and projector are both none: there is nothing to train.",
            "For a model without training: avfs zeroshot --task TASK.",
        ),
        (
            ("micro_batch", "batch_size"),
            lambda v: v["micro_batch"] != AUTO and v["micro_batch"] > v["batch_size"],
            "micro_batch is larger than batch_size.",
            "A batch is cut into micro-batches: make it at most batch_size.",
        ),
        (
            ("objective", "batch_size"),
            lambda v: v["objective"] == "contrastive" and v["batch_size"] < 2,
            "objective contrastive needs a batch_size of at least 2: a clip is told from the others of its batch.",
            "Raise batch_size, or use objective classes.",
        ),
    )


TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({"ave": {"gamma": 0.01}})
"""What the paper sets otherwise for a task than the defaults of :class:`TrainingConfig`."""

PAPER: Mapping[str, Any] = types.MappingProxyType(
    {
        "method": "dgsct",
        "objective": "contrastive",
        "pool": "mean",
        "blend": 1.0,
        "fusion": "weighted",
        "projector": "mlp",
        "anchors": "text",
        "background": "prompt",
        "schedule": "constant",
        "clip_norm": 0.0,
        "patience": 0,
        "val_shots": 0,
    }
)
"""What ``recipe: paper`` sets: what Duan et al. print, and what their released code does where they are silent."""


class TrainingConfig(TrainerConfig):
    """A few-shot training: every choice that its result depends on.

    Adam, learning rate 3e-4, batches of 2, alpha, beta and gamma are those of Duan et al. (arXiv 2311.05152); what the
    paper leaves open (epochs, schedule, early stopping, clipping) says so in its help.
    """

    task: Task = setting("folder", "What is learnt and how it is judged.")
    shots: Count = setting(16, "Training clips of each class.")
    recipe: Literal["default", "paper"] = setting(
        "default",
        "Defaults of DG-SCT: ours, or those of Duan et al. (docs/fewshot.md has the differences).",
        panel=METHOD,
    )
    method: Method = setting(
        AUTO,
        "How it is learnt: `auto` fits light methods on frozen embeddings, trains DG-SCT and joins them; or one of "
        f"{', '.join((*LIGHT_METHODS, *TUNED_METHODS))}.",
    )
    tune: bool = setting(True, "Train DG-SCT for `auto`; without it a run takes seconds.")
    epochs: Count | Auto = setting(
        AUTO,
        "Passes over the support, at most; `auto`: about 500 steps, in 3 to 20 of them. Not given by the paper.",
        panel=TRAINING,
    )
    max_steps: Count | None = setting(
        None, "Optimizer steps, at most; for a short trial.", panel=TRAINING, unset="as the epochs say"
    )
    val_shots: Annotated[int, Ge(0)] | Literal["auto", "all"] = setting(
        AUTO,
        "Validation clips of each class for what is trained, counted as labels; `auto`: min(shots, 4), `all`: the "
        "whole val split. Light methods need none.",
        panel=DATA,
    )
    seeds: Seeds = setting((1,), "One fit for each; a seed draws the support, the weights and the order.")
    sampler: Literal["nested", "first-k"] = setting(
        "nested", "How the support is drawn: by seed, or the first rows.", panel=DATA
    )
    multi_label: bool = setting(
        False, "Draw clips with several labels too; in --data, files that are linked into several folders.", panel=DATA
    )
    background: Background = setting("threshold", "How seconds without an event are told (task ave).", panel=METHOD)
    anchors: Literal["auto", "text", "support"] = setting(
        AUTO,
        "What DG-SCT compares clips with: texts, or texts and the class means of the support; `auto`: the means where "
        "they answer better on support clips that are left out of them. Tasks that label seconds: texts.",
        panel=METHOD,
    )
    fusion: Fusion | Auto = setting(
        AUTO,
        "How the two modalities are joined; `auto`: weighted, but product for adapters with class means where that "
        "answers clearly more of the support.",
        panel=METHOD,
    )
    patience: Annotated[int, Ge(0)] = setting(
        5, "Stop after so many epochs without a better validation figure; 0: never.", panel=TRAINING
    )

    audio_context: AudioContext = setting(
        "second", f"{HEARD} What is trained through the towers hears seconds.", panel=MODEL, saved=True
    )

    @classmethod
    def defaults_given(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of the task and of the recipe."""
        task = values.get("task")
        of_task = TASK_DEFAULTS.get(task, {}) if isinstance(task, str) else {}
        return {**of_task, **(PAPER if values.get("recipe") == "paper" else {})}


class PretrainingConfig(TrainerConfig):
    """A pretraining: batches large enough to tell a clip from many others."""

    task: ClassVar[str] = "vggsound_cls"

    seed: Seed = setting(1, "Of weights and order.")
    objective: Literal["contrastive", "classes"] = setting(
        "contrastive", "Candidates: texts of the batch, or all.", panel=METHOD
    )
    batch_size: Count = setting(32, "Clips of a batch.", panel=TRAINING)
    warmup: Annotated[Real, Ge(0), Le(0.5)] = setting(
        0.05, "Share of all steps in which the learning rate rises from zero.", panel=TRAINING
    )
    epochs: Count = setting(10, "Passes over the clips.", panel=TRAINING)
    workers: Annotated[int, Ge(0)] = setting(
        4, "Processes that decode clips ahead of the model; 0: one clip at a time.", panel=COST
    )


def read_training(values: Mapping[str, Any], *, where: str) -> TrainingConfig | PretrainingConfig:
    """The settings of a training as a checkpoint's ``config.json`` holds them, read by :meth:`Settings.from_dict`."""
    return (PretrainingConfig if "seed" in values else TrainingConfig).from_dict(values, where=where)


class SupervisedTrainingConfig(AdapterConfig):
    """A training of a supervised task; what a head's paper says counts unless somebody sets it."""

    adapter: AdapterKind = setting(
        NONE, "What connects the towers; none: a head on frozen features.", panel=ADAPTERS, flag="--adapter-kind"
    )
    projector: Literal["residual", "mlp", "none"] = setting(
        NONE, "Trainable maps on all embeddings (Eq. 8).", panel=ADAPTERS
    )
    head: Text | None = setting(None, "What answers: cmbs, han, mgn, ...", panel=METHOD, unset="the task's first")
    subset: Text | None = setting(None, "Part or version of the data set, where it has several.", panel=DATA)
    modality: Literal["av", "visual", "audio"] = setting(
        "av", "What is learnt from: both, only sight, only sound.", panel=METHOD
    )
    seeds: Seeds = setting((1,), "A training for each: of weights, order and dropout.")
    lr: Annotated[Real, Gt(0)] | None = setting(None, "Learning rate.", panel=TRAINING, unset="the head's")
    batch_size: Count | None = setting(
        None, "Clips of a batch; with adapters 8 at most.", panel=TRAINING, unset="the head's"
    )
    epochs: Count | None = setting(None, "Passes over the training split, at most.", panel=TRAINING, unset="the head's")
    patience: Annotated[int, Ge(0)] = setting(
        20, "Stop after so many epochs without a better validation figure; 0: never.", panel=TRAINING
    )
    precision: Precision = setting("auto", "Number format of the towers.", panel=MODEL, saved=True)
    checkpointing: bool | Auto = setting(
        "auto", "Compute activations twice, for adapters: slower, far less memory.", panel=COST
    )
    cache_size: Size = setting(20_000_000_000, "Bound on features kept on disk; 0: none.", panel=COST)
    workers: Annotated[int, Ge(0)] = setting(2, "Threads that decode clips ahead.", panel=COST)

    RULES: ClassVar[tuple[Rule, ...]] = TrainerConfig.RULES[:2]
