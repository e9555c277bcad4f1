"""A few-shot run: support, training, selection on validation clips, one evaluation on test clips; for each seed."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional as F

from avfewshot.config import AUTO, TUNED_METHODS
from avfewshot.data.sampler import Support
from avfewshot.errors import AvfsError, DataError
from avfewshot.evaluation.evaluator import UNTRAINED
from avfewshot.evaluation.few_shot import (
    label_features,
    labelled_support,
    method_support,
    tuned_posteriors,
    tuned_seconds,
    tuning_inputs,
)
from avfewshot.evaluation.finished import ANSWERS_NAME
from avfewshot.evaluation.results import Comparison, TaskResult
from avfewshot.io import write_text
from avfewshot.methods.calibration import beats_chance
from avfewshot.methods.joining import join_tuned
from avfewshot.methods.living import learn_to_reject
from avfewshot.methods.method import Scorer, find_method
from avfewshot.models.anchors import SupportAnchors
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model, load_model
from avfewshot.models.checkpoint import CHOSEN_NAME
from avfewshot.models.fusion import both_ways
from avfewshot.training.checkpoints import CheckpointManager
from avfewshot.training.data import SupportSource, draw, readable_support, sample_labels
from avfewshot.training.fewshot_setting import FewShotSetting
from avfewshot.training.objective import ClipEmbeddings, Objective
from avfewshot.training.outcome import MTEB, TRAINED, on_test_clips
from avfewshot.training.protocol import Progress
from avfewshot.training.tasks import FewShotTask
from avfewshot.training.trainer import Trainer
from avfewshot.training.validation import BLIND_ALPHA, Validator, ValMetrics
from avfewshot.tuning.fit import TuningClip, clip_loss, save, tune
from avfewshot.tuning.methods import TUNED, TunedMethod


class SeedResult(BaseModel):
    """What one seed gave; ``result.json`` in its folder."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    seed: int
    support: dict[str, Any]  # what was trained on, as Support.to_dict gives it
    progress: Progress | None  # how the training ended; None where nothing was trained through the towers
    results: dict[str, TaskResult]  # of the untrained systems, TRAINED and the methods on the test clips
    comparison: Comparison | None  # of these; None where there is no test clip
    folder: Path = Field(exclude=True)  # where checkpoints and metrics of this seed lie
    methods: dict[str, dict[str, Any]] = {}  # left-out accuracy, choices, seconds of each
    drawn: str = ""  # fingerprint of the draw before clips that cannot be read were replaced
    unusable: list[tuple[str, str, str]] = []  # these, as Usage.left has them

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return self.model_dump(mode="json")


class FewShot(FewShotSetting):
    """A few-shot run: trains, fits, chooses and evaluates, a seed after the other."""

    def run(self, seed: int) -> SeedResult:
        """Train and evaluate with one seed; goes on where it was interrupted, and is not repeated when it was done.

        Raises:
            AvfsError: There is nothing to train on, or to evaluate on, or it cannot be trained.
            KeyboardInterrupt: It was interrupted, and can be resumed.
        """
        folder = self.folder / f"seed-{seed}"
        config, usage = self.config, self.evaluator.usage
        drawn = draw(self.dataset, config, seed)
        known = read_result(folder, drawn.fingerprint)
        if known is not None and self._has_all(known):
            train = usage.used.setdefault("train", [])
            train += [name for name in known.support["ids"] if name not in set(train)]
            usage.restore(known.unusable)
            return known
        support = self.support(seed)
        unusable = [entry for entry in usage.left if entry[0] == "train"]
        scorers = self.fit_methods(seed, support)
        prompted = self.tune_prompts(seed, support)
        used = {"support": len(support.samples), "validation": self.validation_used}
        trained: dict[str, tuple[AudioVisualModel, Progress]] = {}
        about: dict[str, dict[str, Any]] = {}
        for name in (*([TRAINED] if self.trains_own else []), *self.kinds):
            begun = time.perf_counter()
            trained[name] = self.train(seed, support, None if name == TRAINED else name)
            learnt = sum(value.numel() for value in trained[name][0].parameters() if value.requires_grad)
            about[name] = {"labels_used": used, "seconds": time.perf_counter() - begun, "trainable": learnt}
        if AUTO in scorers and TRAINED in trained:
            model, progress = trained[TRAINED]
            self._join(scorers[AUTO], model, progress.best)
        if self.config.method in scorers:
            self._save(seed, support, scorers)
        # Test clips come in here and not before: nothing that is chosen can depend on them.
        results: dict[str, TaskResult] = {}
        comparison, more = None, {}
        if self.dataset.available("test"):
            results, comparison, more = on_test_clips(self, trained, scorers, prompted, folder / ANSWERS_NAME)
        methods = {name: scorer.diagnostics for name, scorer in scorers.items()} | about
        methods |= {name: told for name, (_, told) in prompted.items()}
        if AUTO in methods and methods[AUTO].get("tuned"):
            auto = methods[AUTO] = {**methods[AUTO], "labels_used": {**methods[AUTO]["labels_used"], **used}}
            if scorers[AUTO].is_tuned:
                auto |= {key: auto[key] + about[TRAINED][key] for key in ("seconds", "trainable")}
        if comparison is not None:
            # Thresholds of the untrained systems, where the task needs any, are all that they take labels for.
            chosen = self.evaluator.decision.per_second or self.dataset.multi_label
            count = len(self.evaluator.scored("val").samples) if chosen else 0
            for name in (name for name in (*UNTRAINED, MTEB) if name in comparison.systems):
                labels = {"support": 0 if self.trains else count, "validation": count if self.trains else 0}
                methods[name] = {"labels_used": labels, "seconds": 0.0, "trainable": 0}
        methods = {name: {**told, **more.get(name, {})} for name, told in methods.items()}
        result = SeedResult(
            seed=seed,
            support=support.to_dict(),
            progress=trained[TRAINED][1] if TRAINED in trained else None,
            results=results,
            comparison=comparison,
            folder=folder,
            methods=methods,
            drawn=drawn.fingerprint,
            unusable=unusable,
        )
        write_text(folder / "result.json", json.dumps(result.to_dict()))
        return result

    def _has_all(self, known: SeedResult) -> bool:
        """Whether an earlier result holds all systems that are asked for now."""
        asked = {TRAINED if name == "dgsct" else name for name in (self.config.method, *self.also)}
        if self.protocol is not None and known.comparison is not None:
            asked.add(MTEB)
        return asked <= known.methods.keys()

    def support(self, seed: int) -> Support:
        """Draw the support of a seed and read its clips."""
        self.observer.begin(f"seed {seed}: reading the support", 0)
        usage = self.evaluator.usage
        support = readable_support(self.dataset, self.config, seed, self.evaluator.read, usage, self.observer.advance)
        if seed == self.config.seeds[0]:
            for line in support.describe()[1:]:
                self.observer.say(line)
        used = usage.used.setdefault("train", [])
        before = set(used)
        used += dict.fromkeys(sample.id for sample in support.samples if sample.id not in before)
        return support

    def fit_methods(self, seed: int, support: Support) -> dict[str, Scorer]:
        """Fit the light methods on frozen embeddings of the support, and show what they get right when left out."""
        config = self.config
        light = [name for name in (config.method, *self.also) if name not in TUNED_METHODS]
        if not light:
            return {}
        self.observer.begin(f"seed {seed}: embedding the support", len(support.samples))
        self.clips = clips = method_support(self.evaluator, support.samples, counter=True)
        scorers: dict[str, Scorer] = {}
        for name in light:
            self.observer.begin(f"seed {seed}: fitting {name}", 0)
            texts = label_features(self.evaluator, single_prompts=name == "timo")
            scorer = find_method(name).fit(clips, texts, seed=seed)
            beside = [part for part in scorer.clip.parts if part not in ("zero_shot", *light)]
            scorers = {part: scorer.part(part, clips, seed=seed) for part in beside} | scorers | {name: scorer}
        self.observer.methods(seed, {name: scorer.diagnostics for name, scorer in scorers.items()})
        return scorers

    def tune_prompts(self, seed: int, support: Support) -> dict[str, tuple[TunedMethod, dict[str, Any]]]:
        """Train those of the methods that tune prompts or low-rank updates, by their published recipes."""
        names = [name for name in (self.config.method, *self.also) if name in TUNED]
        if not names:
            return {}
        texts = [*self.dataset.wordings, self.templates.background_visual[0]]
        samples, features = self.evaluator.features(support.samples)
        per_second = self.evaluator.decision.per_second
        labels = labelled_support(replace(self.dataset, none_class=None), samples, features, per_second=per_second)
        found = {}
        for name in names:
            inputs = tuning_inputs(self.evaluator, TUNED[name].uses_pixels, samples, features)
            targets = labels.segments if per_second else labels.labels
            assert targets is not None
            clips = [
                TuningClip(pair[0], pair[1], torch.from_numpy(np.array(row)))
                for pair, row in zip(inputs, targets, strict=True)
            ]
            folder = self.folder / f"seed-{seed}" / name
            show = functools.partial(self.observer.begin, f"seed {seed}: tuning {name}", unit="step")
            with self.put_off() as stopping:
                method = tune(
                    name, self.backbone, texts, clips, shots=self.config.shots, seed=seed,
                    max_steps=self.config.max_steps, place=folder, begin=show, advance=self.observer.advance,
                    stopping=stopping,
                )  # fmt: skip
            save(method, folder)
            self.write_config(folder, seed, support)
            about = {"seconds": method.seconds, "trainable": method.num_trainable}
            with torch.no_grad():
                about["support_loss"] = fmean(clip_loss(method, [clip]).item() for clip in clips)
            self.observer.say(f"seed {seed}: {name} tuned in {method.seconds:.0f} s.")
            found[name] = (method, about | {"labels_used": {"support": len(clips), "validation": 0}})
        return found

    def train(self, seed: int, support: Support, kind: str | None = None) -> tuple[AudioVisualModel, Progress]:
        """Train (`kind`: another adapter than that of the settings); gives the best model, in evaluation mode."""
        config, evaluator, callback = self.config, self.evaluator, self.observer.training(seed, int(self.config.epochs))
        folder = self.folder / f"seed-{seed}"
        if kind is not None:
            config, folder = config.replace(adapter=kind), folder / kind
        per_second = evaluator.decision.per_second
        objective = Objective(config, evaluator.texts.to(self.device), per_second=per_second)
        model = build_model(self.backbone, config, seed=seed, device=self.device)
        if self.initial is not None:
            model.load_trainable_state(self.initial.tensors)
        model.to(self.device)
        model.anchors, fusion = self._anchors(support, objective, config.adapter_title)
        source = SupportSource(self.dataset, support.samples, evaluator.read, threads=config.workers)
        if config.max_steps is not None:
            source.limit = max(1, config.max_steps // int(config.epochs)) * config.batch_size * config.accumulation
        task = FewShotTask(
            model,
            config,
            source=source,
            labels=[sample_labels(self.dataset, sample, per_second=per_second) for sample in support.samples],
            objective=objective,
            validator=Validator(
                replace(evaluator.decision, fusion=fusion),
                evaluator.validation_targets(),
                evaluator.scored("val").logits,
                lambda model: evaluator.trained_logits(model, "val"),
                config.blend,
                BLIND_ALPHA,
            ),
            describe=lambda metrics: self.describe(seed, support, metrics, config),
            seed=seed,
            pretrained=self.initial is not None,
        )
        trainer = Trainer(
            self.fabric, model, config, task, [callback, *self.callbacks(folder)], folder=folder, seed=seed
        )
        with self.put_off() as trainer.stopping:
            progress = trainer.fit(resume=trainer.checkpoints.load_last(self.backbone))
        model.load_trainable_state(trainer.checkpoints.load_best(self.backbone).tensors)
        return model.eval(), progress

    def _anchors(self, support: Support, objective: Objective, title: str) -> tuple[SupportAnchors | None, str]:
        """The class means of the support where they answer better than texts do, on its own clips, each left out.

        And how the model's modalities are joined: multiplied where that answers still more of them.
        """
        usual = self.evaluator.decision.fusion
        if self.config.anchors == "text" or self.evaluator.decision.per_second:
            return None, usual
        samples, features = self.evaluator.features(support.samples)
        if len(samples) < len(support.samples):
            raise AvfsError("A clip of the support could be read before and cannot be embedded now.")
        pairs = [
            [None if one is None else one.to(self.device) for one in pair]
            for pair in tuning_inputs(self.evaluator, False, samples, features)
        ]
        widths = self.backbone.visual.output_dim, self.backbone.audio.output_dim
        units = [
            torch.stack([torch.zeros(width) if one is None else F.normalize(one.mean(0), dim=-1).cpu() for one in part])
            for part, width in zip(zip(*pairs, strict=True), widths, strict=True)
        ]
        labels = torch.from_numpy(self.dataset.multi_hot(samples))
        anchors = SupportAnchors(self.dataset.classes, units[0], units[1], labels).to(self.device)
        if self.config.anchors == "support":
            return anchors, usual
        clips = [ClipEmbeddings(visual, audio, row) for row, (visual, audio) in enumerate(pairs)]
        frozen = AudioVisualModel(self.backbone).to(self.device)
        multiplied = Objective(self.config.replace(fusion="product"), objective.texts, per_second=False)
        right = []
        with torch.inference_mode():
            for frozen.anchors, how in ((None, objective), (anchors, objective), (anchors, multiplied)):
                answers = [said.log_probabilities.argmax() for said in how.predict(frozen, clips)]
                right.append(labels[torch.arange(len(clips)), torch.stack(answers).cpu()].numpy())
        one_shot, chance = self.config.shots == 1, float(labels.float().mean())
        better, multiply, told = anchors_are_worth(*right, one_shot=one_shot, chance=chance)
        self.observer.say(f"{title}: anchors {'texts and class means' if better else 'texts'} ({told}).")
        return anchors if better else None, "product" if multiply and self.config.fusion == AUTO else usual

    def _join(self, scorer: Scorer, model: AudioVisualModel, metrics: ValMetrics) -> None:
        """Let the trained model speak beside the light methods, as much as validation clips tell."""
        if not self.evaluator.scored("val").samples:
            title = self.config.adapter_title
            self.observer.say(f"auto: {title} not joined: no validation clip tells how much it is worth (--val-shots).")
            return
        unseen = method_support(self.evaluator, "val")
        logits = self.evaluator.joined(model, "val", metrics.blend)
        said = logits, metrics.fitted
        seconds = tuned_seconds(self.evaluator, *said) if self.evaluator.decision.per_second else None
        joined = join_tuned(scorer, unseen, tuned_posteriors(self.evaluator, *said), seconds)
        share = "not joined"
        if scorer.is_tuned:
            own, other = both_ways(metrics.fitted.fusion or self.evaluator.decision.fusion)
            share = f"weight {joined['tuned']:.2f} ({own}) and {joined['other']:.2f} ({other}) "
            share += f"beside {joined['light']:.2f}"
        self.observer.say(f"auto: {self.config.adapter_title} {share}, {joined['why']} ({joined['clips']} clips).")

    def _save(self, seed: int, support: Support, scorers: dict[str, Scorer]) -> None:
        """Put what predicts into the run folder: `zeroshot --adapter RUN` and `load(adapter=RUN)` find it."""
        folder = self.folder / f"seed-{seed}" / "scorer"
        scorer = scorers[self.config.method]
        scorer.decide_labels(self.clips)
        learn_to_reject(scorer, self.clips, seed=seed)
        scorer.save(folder)
        self.write_config(folder, seed, support)

    def choose(self, results: Sequence[SeedResult]) -> dict[str, Any] | None:
        """Which of several seeds answers for the run, by no test clip; written where `--adapter RUN` finds it."""
        if len(results) < 2:
            return None
        method, rule, figures = self.config.method, "", {}
        for result in results:
            about = result.methods.get(method, {})
            if method == "dgsct" and result.progress is not None and self.evaluator.scored("val").samples:
                best = result.progress.best
                rule, figures[result.seed] = "best on the validation clips", (-best.figure, best.loss)
            elif method in TUNED:
                rule, figures[result.seed] = "lowest loss on its support", (about["support_loss"],)
            elif (loss := about.get("loo_log_loss")) is not None:
                rule, figures[result.seed] = "lowest log-loss on left-out clips of its support", (loss,)
        seed = min(figures, key=figures.__getitem__) if len(figures) == len(results) else results[0].seed
        if len(figures) < len(results):
            rule, figures = "the first, since nothing but test clips tells one from another", {}
        chosen = {"seed": seed, "why": rule, "figures": {str(one): abs(values[0]) for one, values in figures.items()}}
        write_text(self.folder / CHOSEN_NAME, json.dumps(chosen, indent=1))
        return chosen

    def best_model(self, seed: int) -> AudioVisualModel:
        """The model that validation chose in a run that is done, in evaluation mode."""
        checkpoints = CheckpointManager(self.folder / f"seed-{seed}" / "checkpoints")
        return load_model(checkpoints.load_best(self.backbone), self.backbone)[0].to(self.device)


def read_result(folder: Path, drawn: str) -> SeedResult | None:
    """What an earlier run with a seed gave, if it began with the draw of this fingerprint and came to its end.

    A file that is damaged is a :class:`DataError`.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("drawn", values["support"]["fingerprint"]) != drawn:
            return None
        return SeedResult.model_validate({**values, "folder": folder, "drawn": drawn})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: is damaged ({str(error).splitlines()[0]}).", hint="Remove it: the evaluation is then done again."
        ) from None


def anchors_are_worth(
    text: np.ndarray, means: np.ndarray, product: np.ndarray, *, one_shot: bool, chance: float
) -> tuple[bool, bool, str]:
    """Whether class means answer better than texts, and then still better multiplied; and what is told of it.

    Args:
        text: Bool ``[N]``: which clips of the support the texts alone answer right.
        means: The same with the class means, each clip left out of its own.
        product: The same with both modalities' posteriors multiplied.
        one_shot: Nothing can be left out: means are taken where texts do no better than chance.
        chance: Of a right answer.
    """
    told = f"texts {100 * text.mean():.0f} %, class means {100 * means.mean():.0f} % of the support, left out"
    if one_shot:
        return not beats_chance(int(text.sum()), len(text), chance), False, told
    better = means.sum() - text.sum() > 2 * (means != text).sum() ** 0.5
    multiply = better and product.sum() - means.sum() > 2 * (product != means).sum() ** 0.5
    if multiply:
        told += f"; with fusion product {100 * product.mean():.0f} %"
    return bool(better), bool(multiply), told
