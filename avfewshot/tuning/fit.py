"""Training of a tuned method on a support, by its published recipe; and its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.tower import Pair
from avfewshot.errors import DataError, UsageError
from avfewshot.media.clip import MODALITIES
from avfewshot.tuning.methods import TUNED, TunedMethod

TENSORS_NAME, ABOUT_NAME = "tuned.safetensors", "tuned.json"


@dataclass(frozen=True, eq=False)
class TuningClip:
    """A clip of the support.

    `visual` and `audio` are what :meth:`TunedMethod.forward` takes; `labels` is bool ``[K]``, or ``[T, K + 1]``
    (background last) for tasks that label seconds.
    """

    visual: Tensor | None
    audio: Tensor | None
    labels: Tensor


def clip_loss(method: TunedMethod, clips: Sequence[TuningClip]) -> Tensor:
    """Cross-entropy of both modalities, a mean over samples.

    A clip with labels of its own is one sample, its logits the mean of its seconds'; a clip whose seconds are labelled
    is one sample a second. Several labels share the target evenly.
    """
    losses = []
    for pair, clip in zip(method.logits([(clip.visual, clip.audio) for clip in clips]), clips, strict=True):
        for logits in pair:
            if logits is None:
                continue
            labels = clip.labels.to(logits.device)
            if labels.ndim == 1:
                logits, labels = logits[:, :-1].mean(0, keepdim=True), labels[None]
            target = F.normalize(labels.float(), p=1, dim=-1)
            losses.append(F.cross_entropy(logits, target[: len(logits)], reduction="none"))
    return torch.cat(losses).mean()


def tune(
    name: str,
    backbone: Backbone,
    texts: Sequence[str],
    clips: Sequence[TuningClip],
    *,
    shots: int,
    seed: int,
    progress: Callable[[int, int, float], object] | None = None,
    max_steps: int | None = None,
) -> TunedMethod:
    """Train a method from its published beginning on `texts`, K + 1 wordings with the background last.

    Raises:
        DataError: There is no clip.
    """
    if not clips:
        raise DataError("There is no clip to train on.")
    device = next(backbone.visual.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        method = TUNED[name](backbone, texts).to(device)
        recipe = method.recipe
        total, per_epoch = recipe.steps(shots, len(clips))
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        if recipe.optimizer == "adamw":
            optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
        else:
            optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
        order: list[int] = []
        method.learning(True)
        for step in range(min(total, max_steps or total)):
            if len(order) < min(recipe.batch_size, len(clips)):
                order += torch.randperm(len(clips)).tolist()
            batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
            warming = bool(recipe.warmup_lr) and step < per_epoch and total > per_epoch
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            rate = recipe.warmup_lr if warming else recipe.final_lr + (recipe.lr - recipe.final_lr) * cosine
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = clip_loss(method, [_drawn(clips[index], recipe.seconds) for index in batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(step + 1, total, loss.item())
        method.learning(False)
    return method.requires_grad_(False)


def _drawn(clip: TuningClip, count: int) -> TuningClip:
    """`count` of the clip's seconds, drawn anew at each call; all of them where it is 0."""
    length = min(len(part) for part in (clip.visual, clip.audio) if part is not None)
    if not count or count >= length:
        return clip
    chosen = torch.randperm(length)[:count]
    visual, audio = (None if part is None else part[chosen] for part in (clip.visual, clip.audio))
    return TuningClip(visual, audio, clip.labels if clip.labels.ndim == 1 else clip.labels[chosen])


@torch.no_grad()
def answers(method: TunedMethod, clips: Sequence[Pair]) -> list[Pair]:
    """Logits float32 ``[T, K + 1]`` on the CPU for sight and sound of each clip."""
    result = []
    for visual, audio in clips:
        pair = method(visual, audio)
        result.append(tuple(None if logits is None else logits.float().cpu() for logits in pair))
    return result


def save(method: TunedMethod, folder: Path) -> None:
    """Write the learned tensors (``tuned.safetensors``), with the method's name and texts beside them."""
    import json

    from safetensors.torch import save as to_bytes

    from avfewshot.io import write_bytes, write_text

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    write_bytes(folder / TENSORS_NAME, to_bytes(state))
    write_text(folder / ABOUT_NAME, json.dumps({"method": method.name, "texts": list(method.texts)}, indent=1))


def load(folder: Path, backbone: Backbone, texts: Sequence[str] | None = None) -> TunedMethod:
    """Read what :func:`save` wrote; `texts`: for other wordings than it was tuned with, the background last.

    Raises:
        DataError: Files are missing, damaged, or of another backbone.
        UsageError: A text is too long behind the context vectors that were learnt.
    """
    import json

    from avfewshot.encoders.weights.load import read_tensors

    try:
        about = json.loads((folder / ABOUT_NAME).read_text(encoding="utf-8"))
        device = next(backbone.visual.parameters()).device
        kind, state = TUNED[about["method"]], read_tensors(folder / TENSORS_NAME)
        # How many context vectors fit depends on the longest wording: as many as were learnt.
        first = {name: state.get(f"context.{name}", state.get(f"context.{name}.0")) for name in MODALITIES}
        lengths = {name: len(vectors) for name, vectors in first.items() if vectors is not None}
        options: dict[str, Any] = {"context": lengths} if lengths else {}
        method = kind(backbone, [str(text) for text in texts or about["texts"]], **options).to(device)
        prompts: Any = method.prompts
        if any(prompts[name].context < length for name, length in lengths.items()):
            most = max(lengths.values())
            raise UsageError(
                f"The labels are too long behind the {most} context vectors of {folder}: they would be cut.",
                hint="Use shorter labels, or shorter wordings (`label: wording` in the label file).",
            )
        method.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{folder}: holds no tuned method that fits this backbone: {reason}") from error
    return method.requires_grad_(False)
