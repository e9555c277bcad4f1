"""Training of a tuned method on a support, by its published recipe; and its answers."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.tower import Pair
from avfewshot.errors import DataError, UsageError
from avfewshot.io import write_bytes, write_text
from avfewshot.media.clip import MODALITIES
from avfewshot.tuning.methods import TUNED, TunedMethod

TENSORS_NAME, ABOUT_NAME, STATE_NAME = "tuned.safetensors", "tuned.json", "tuning.state"
SAVE_SECONDS = 300.0
"""A state is kept when so much time has passed."""


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
    max_steps: int | None = None,
    place: Path | None = None,
    begin: Callable[[int, int], object] = lambda steps, done: None,
    advance: Callable[[], object] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> TunedMethod:
    """Train a method from its published beginning on `texts`, K + 1 wordings with the background last.

    Args:
        name: Of the method, in :data:`TUNED`.
        backbone: Stays as it is.
        texts: What the classes are called.
        clips: The support.
        shots: Clips a class, which published recipes go by.
        seed: Of the weights, the order and what is dropped.
        max_steps: No more optimizer steps than these.
        place: A folder that the state is kept in, every five minutes, at the end and when it stops: the same training
            goes on from there to the bit.
        begin: Is told how many steps there are, and how many are done.
        advance: Is called after each further one.
        stopping: Whether somebody asked to stop; looked at after each step.

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
        kept, done, order, spent = None, 0, [], 0.0
        if place is not None:
            kept = _Kept(place / STATE_NAME, (name, list(texts), shots, seed, max_steps, backbone.identity), clips)
            done, order, spent = kept.restore(parameters, optimizer)
        steps, saved = min(total, max_steps or total), time.monotonic()
        begun = saved - spent
        begin(steps, done)
        method.learning(True)
        for step in range(done, steps):
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
            advance()
            stops, spent = stopping(), time.monotonic() - begun
            if kept is not None and (stops or step + 1 == steps or time.monotonic() - saved > SAVE_SECONDS):
                kept.save(step + 1, order, spent, parameters, optimizer)
                saved = time.monotonic()
            if stops:
                break
        method.learning(False)
        method.seconds = spent
    return method.requires_grad_(False)


class _Kept:
    """A file that says where a training stands. One of other inputs, or damaged, counts for nothing."""

    def __init__(self, path: Path, about: object, clips: Sequence[TuningClip]) -> None:
        self._path, self._inputs = path, hashlib.sha256(repr(about).encode())
        for clip in clips:
            for part in (clip.visual, clip.audio, clip.labels):
                self._inputs.update(repr(None if part is None else (part.shape, part.dtype)).encode())
                self._inputs.update(b"" if part is None else part.cpu().contiguous().numpy().data)

    def _seal(self, content: bytes) -> bytes:
        """What is written before the content: a digest of the inputs and of it."""
        digest = self._inputs.copy()
        digest.update(content)
        return digest.digest()

    def save(self, done: int, order: Sequence[int], spent: float, parameters: Sequence[Tensor], optimizer: Any) -> None:
        """Keep what the rest of the training depends on, and the seconds spent."""
        tensors = {"place": torch.tensor([done, *order]), "random": torch.get_rng_state()}
        tensors["spent"] = torch.tensor(spent, dtype=torch.float64)
        if parameters[0].is_cuda:
            tensors["cuda"] = torch.cuda.get_rng_state(parameters[0].device)
        tensors |= {f"parameter.{row}": parameter for row, parameter in enumerate(parameters)}
        for row, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{row}.{name}": value for name, value in values.items()}
        content = _to_bytes(tensors)
        write_bytes(self._path, self._seal(content) + content)

    def restore(self, parameters: Sequence[Tensor], optimizer: Any) -> tuple[int, list[int], float]:
        """Put back what was kept; gives the steps done, the clips that come next and the seconds spent."""
        from safetensors.torch import load as of_bytes

        try:
            stored = self._path.read_bytes()
        except OSError:
            return 0, [], 0.0
        seal, content = stored[: self._inputs.digest_size], stored[self._inputs.digest_size :]
        if seal != self._seal(content):
            return 0, [], 0.0
        tensors = of_bytes(content)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "parameter":
                parameters[int(rest)].data.copy_(tensor)
            elif kind == "optimizer":
                row, name = rest.split(".")
                moments.setdefault(int(row), {})[name] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        torch.set_rng_state(tensors["random"])
        if "cuda" in tensors:
            torch.cuda.set_rng_state(tensors["cuda"], parameters[0].device)
        done, *order = tensors["place"].tolist()
        return done, order, float(tensors["spent"])


def _drawn(clip: TuningClip, count: int) -> TuningClip:
    """`count` of the clip's seconds, drawn anew at each call; all of them where it is 0."""
    length = min(len(part) for part in (clip.visual, clip.audio) if part is not None)
    if not count or count >= length:
        return clip
    chosen = torch.randperm(length)[:count]
    visual, audio = (None if part is None else part[chosen] for part in (clip.visual, clip.audio))
    return TuningClip(visual, audio, clip.labels if clip.labels.ndim == 1 else clip.labels[chosen])


@torch.no_grad()
def answers(method: TunedMethod, clips: Iterable[Pair]) -> list[Pair]:
    """Logits float32 ``[T, K + 1]`` on the CPU for sight and sound of each clip."""
    result = []
    for visual, audio in clips:
        pair = method(visual, audio)
        result.append(tuple(None if logits is None else logits.float().cpu() for logits in pair))
    return result


def save(method: TunedMethod, folder: Path) -> None:
    """Write the learned tensors (``tuned.safetensors``), with the method's name and texts beside them."""
    write_bytes(folder / TENSORS_NAME, _to_bytes(method.state_dict()))
    write_text(folder / ABOUT_NAME, json.dumps({"method": method.name, "texts": list(method.texts)}, indent=1))


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save as to_bytes

    return to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def load(folder: Path, backbone: Backbone, texts: Sequence[str] | None = None) -> TunedMethod:
    """Read what :func:`save` wrote; `texts`: for other wordings than it was tuned with, the background last.

    Raises:
        DataError: Files are missing, damaged, or of another backbone.
        UsageError: A text is too long behind the context vectors that were learnt.
    """
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
