"""Train the packaged `tiny` backbone on the toy world, from scratch, on two cores.

    python scripts/train_tiny.py --work build/tiny

The image pair (a ViT and a text transformer) and the audio pair (an HTS-AT and a text transformer) are trained side by
side, one process and one thread each, on samples that are rendered first. Both learn from captions with a contrastive
loss. Two auxiliary targets that are dropped afterwards get the towers going: what the whole sample shows, and, for
pictures, what each patch shows. The weights are written as float16 safetensors without what can be rebuilt, and the
training curves beside them as JSON lines.

The same seed on the same machine with the same versions gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from toy_captions import Captioner
from toy_samples import sample_frame, sample_sound
from tqdm import tqdm

from avfewshot.encoders.kinds.clap import is_rebuilt
from avfewshot.encoders.kinds.towers import ClipClap
from avfewshot.encoders.presets import load_preset
from avfewshot.io import atomic_path, write_text
from avfewshot.toyworld.vocabulary import OBJECTS, SOUNDS

CHUNK = 500
CAPTIONED = 32
WARM_UP = 300
JUDGED = 1000
EVERY = 500


class PatchSubset(nn.Module):
    """Keep the class token and a random half of the patches, the same ones for the whole batch.

    Half the patches cost half the time; towards the end of the training all are kept.
    """

    def __init__(self, patches: int, share: float) -> None:
        super().__init__()
        self.patches, self.share = patches, share
        self.kept = torch.arange(patches)

    def forward(self, tokens: Tensor) -> Tensor:
        count = round(self.patches * self.share) if self.training else self.patches
        self.kept = torch.randperm(self.patches)[:count].sort().values
        return tokens if count == self.patches else tokens[:, torch.cat([torch.zeros(1).long(), self.kept + 1])]


def caption_loss(samples: Tensor, texts: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Symmetric contrastive loss in which every caption that is true of a sample is a positive.

    Args:
        samples: Unit embeddings ``[B, D]``.
        texts: Unit embeddings ``[C, D]`` of captions of the first C samples.
        scale: Temperature.
        true: float ``[B, C]``, 1 where caption j is true of sample i; a sample without a true caption is a negative.

    Returns:
        Scalar.
    """
    logits = scale * samples @ texts.T
    described = true.sum(1) > 0
    rows = (logits.log_softmax(1) * true).sum(1)[described] / true.sum(1)[described]
    columns = (logits.log_softmax(0) * true).sum(0) / true.sum(0)
    return -(rows.mean() + columns.mean()) / 2


class Captions:
    """Tokenised captions of a batch and which of its samples they are true of."""

    def __init__(self, tokenizer: Callable[[list[str]], Tensor]) -> None:
        self._tokenizer = tokenizer
        self._tokens: dict[str, Tensor] = {}

    def tokens(self, captions: list[str]) -> Tensor:
        for caption in captions:
            if caption not in self._tokens:
                self._tokens[caption] = self._tokenizer([caption])[0]
        return torch.stack([self._tokens[caption] for caption in captions])

    @staticmethod
    def true(main: np.ndarray, trait: np.ndarray, named: np.ndarray, also: np.ndarray) -> Tensor:
        """Caption j is true of sample i if they share the main thing and the trait where it is named, or i also has it.

        Args:
            main: What each sample is, ``[B]``.
            trait: Its colour or pitch, ``[B]``.
            named: Whether each caption names the trait, ``[C]``.
            also: What else each sample shows, ``[B]``, -1 for nothing.

        Returns:
            float ``[B, C]``.
        """
        said, its_trait = main[: len(named)], trait[: len(named)]
        same = (main[:, None] == said[None]) & (~named[None] | (trait[:, None] == its_trait[None]))
        extra = (also[:, None] == said[None]) & (also[:, None] >= 0) & ~named[None]
        return torch.from_numpy(same | extra).float()


def start_kindly(visual: nn.Module) -> None:
    """Give a small ViT the start that large ones learn from much data.

    Positions begin as two-dimensional sines and cosines; queries and keys begin alike, so that a patch first looks at
    its neighbours, and values and output opposite (mimetic initialisation, Trockman and Kolter, ICML 2023).
    """
    positions = visual.positional_embedding.data
    width = positions.shape[1]
    grid = math.isqrt(positions.shape[0] - 1)
    frequencies = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    positions[1:] = 0.5 * torch.cat([rows, columns], dim=2).flatten(0, 1)
    for block in visual.transformer.resblocks:
        attention = block.attn
        heads, size = attention.num_heads, attention.head_dim
        queries, keys, values = attention.in_proj_weight.data.chunk(3)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            noise = torch.randn(width, width) / math.sqrt(width)
            left, strengths, right = torch.linalg.svd(0.7 * noise + 0.7 * torch.eye(width))
            root = strengths[:size].sqrt()[:, None]
            queries[part], keys[part] = root * left.T[:size], root * right[:size]
        noise = torch.randn(width, width) / math.sqrt(width)
        left, strengths, right = torch.linalg.svd(0.4 * noise - 0.4 * torch.eye(width))
        values.copy_(strengths.sqrt()[:, None] * right)
        attention.out_proj.weight.data.copy_(left * strengths.sqrt())


class ImagePair:
    """A ViT and its text transformer, with the two auxiliary heads."""

    kinds = len(OBJECTS)
    template = "a photo of a {}"
    names = OBJECTS
    sampled = 30_000
    batch = 64
    steps = 1_600
    peak_rate = 1e-3

    def __init__(self, seed: int, preset: ClipClap) -> None:
        torch.manual_seed(seed)
        self.model, self.tokenizer = preset.clip.build()
        visual = self.model.visual
        start_kindly(visual)
        self.subset = visual.patch_dropout = PatchSubset(64, 0.5)
        width = visual.ln_post.normalized_shape[0]
        self.heads = nn.ModuleDict({"patch": nn.Linear(width, self.kinds + 1), "whole": nn.Linear(128, self.kinds + 1)})
        self._features: Tensor | None = None
        visual.ln_post.register_forward_hook(self._keep)
        self.mean, self.std = preset.clip.mean[0], preset.clip.std[0]

    def _keep(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._features = output

    @staticmethod
    def render(seed: list[int], *, judged: bool = False) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        options = {"empty": 0.0, "crowded": 0.0} if judged else {}
        samples = [sample_frame(rng, **options) for _ in range(CHUNK)]
        return {
            "input": np.stack([sample.picture for sample in samples]),
            "main": np.array([sample.object for sample in samples]),
            "trait": np.array([sample.colour for sample in samples]),
            "also": np.array([sample.second_object for sample in samples]),
            "patches": np.stack([sample.patches for sample in samples]),
        }

    def prepare(self, pictures: np.ndarray) -> Tensor:
        return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def embed(self, inputs: Tensor) -> Tensor:
        return functional.normalize(self.model.visual(inputs), dim=-1)

    def embed_text(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self.model.encode_text(tokens), dim=-1)

    def caption(self, captioner: Captioner, main: int, trait: int) -> tuple[str, bool]:
        return captioner.frame(main, trait)

    def scale(self) -> Tensor:
        return self.model.logit_scale.exp().clamp(max=50)

    def start_step(self, share: float) -> None:
        if share > 0.8:
            self.subset.share = 1.0

    def learn(self, batch: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Embeddings of an augmented batch, and the auxiliary loss."""
        pictures, patches = batch["input"], batch["patches"]
        if rng.random() < 0.5:
            pictures, patches = pictures[:, :, ::-1].copy(), patches[:, :, ::-1].copy()
        inputs = self.prepare(pictures)
        count = len(inputs)
        inputs = inputs * torch.empty(count, 1, 1, 1).uniform_(0.8, 1.2) + torch.empty(count, 1, 1, 1).uniform_(
            -0.4, 0.4
        )
        raw = self.model.visual(inputs)
        shown = torch.from_numpy(patches.reshape(count, -1)).long()[:, self.subset.kept] + 1
        per_patch = self.heads["patch"](self._features[:, 1:])
        auxiliary = functional.cross_entropy(per_patch.flatten(0, 1), shown.flatten())
        auxiliary = auxiliary + functional.cross_entropy(self.heads["whole"](raw), torch.from_numpy(batch["main"]) + 1)
        return functional.normalize(raw, dim=-1), auxiliary

    def state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if "patch_dropout" not in name}


class AudioPair:
    """An HTS-AT and its text transformer, with one auxiliary head."""

    kinds = len(SOUNDS)
    template = "the sound of a {}"
    names = SOUNDS
    sampled = 24_000
    batch = 64
    steps = 3_600
    peak_rate = 1.5e-3

    def __init__(self, seed: int, preset: ClipClap) -> None:
        torch.manual_seed(seed)
        self.model, self.tokenizer = preset.clap.build()
        config = self.model.audio_branch.config.htsat
        self.seconds = config.native_samples // config.sample_rate
        if self.seconds > 1:  # the texts are learnt already, and a clip costs six times what a second does
            self.sampled, self.steps, self.batch = 4_000, 1_000, 32
            tiny = load_preset("tiny").clap
            state = load_file(tiny.source.file)
            self.model.load_state_dict({k: v.float() for k, v in state.items() if k.startswith("text_")}, strict=False)
        self.heads = nn.ModuleDict({"whole": nn.Linear(128, self.kinds + 1)})

    def render(self, seed: list[int], *, judged: bool = False) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        options = {"empty": 0.0, "crowded": 0.0} if judged else {}
        samples = [sample_sound(rng, seconds=self.seconds, **options) for _ in range(CHUNK)]
        tower = self.model.audio_branch
        with torch.no_grad():
            waves = torch.from_numpy(np.stack([sample.waveform for sample in samples]))
            mel = torch.cat([tower.logmel_extractor(tower.spectrogram_extractor(part)) for part in waves.split(50)])
        return {
            "input": mel.half().numpy(),
            "main": np.array([sample.sound for sample in samples]),
            "trait": np.array([sample.pitch for sample in samples]),
            "also": np.full(len(samples), -1),
        }

    def prepare(self, mel: np.ndarray) -> Tensor:
        return torch.from_numpy(mel).float()

    def _raw(self, mel: Tensor) -> Tensor:
        tower = self.model.audio_branch
        features = tower.bn0(mel.transpose(1, 3)).transpose(1, 3)
        features = tower.forward_features(tower.reshape_wav2img(features))
        return self.model.audio_projection(features["embedding"])

    def embed(self, inputs: Tensor) -> Tensor:
        return functional.normalize(self._raw(inputs), dim=-1)

    def embed_text(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self.model.text_branch(tokens), dim=-1)

    def caption(self, captioner: Captioner, main: int, trait: int) -> tuple[str, bool]:
        return captioner.second(main, trait)

    def scale(self) -> Tensor:
        return self.model.logit_scale_a.exp().clamp(max=50)

    def start_step(self, share: float) -> None:
        pass

    def learn(self, batch: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Embeddings of an augmented batch, and the auxiliary loss."""
        inputs = self.prepare(batch["input"])
        count, _, frames, bands = inputs.shape
        inputs = torch.roll(inputs, int(rng.integers(frames)), 2) + torch.empty(count, 1, 1, 1).uniform_(-8, 8)
        for axis, length, longest in ((2, frames, 8), (3, bands, 6)):  # masks of time and frequency (SpecAugment)
            start, width = int(rng.integers(length - longest)), int(rng.integers(longest + 1))
            inputs.narrow(axis, start, width).fill_(float(inputs.mean()))
        raw = self._raw(inputs)
        auxiliary = functional.cross_entropy(self.heads["whole"](raw), torch.from_numpy(batch["main"]) + 1)
        return functional.normalize(raw, dim=-1), auxiliary

    def state(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        state["logit_scale_t"] = state["logit_scale_a"].clone()
        return state


PAIRS: dict[str, type[ImagePair] | type[AudioPair]] = {"clip": ImagePair, "clap": AudioPair}


def rendered(pair: ImagePair | AudioPair, name: str, work: Path, seed: int, count: int) -> dict[str, np.ndarray]:
    """Render the training samples chunk by chunk, or find those of an earlier run."""
    chunks = []
    for index in tqdm(range(math.ceil(count / CHUNK)), desc=f"{name}: render", unit="chunk", disable=None):
        path = work / f"{name}-{seed}-{index:04d}.npz"
        if not path.exists():
            part = path.with_suffix(".part.npz")
            np.savez(part, **pair.render([seed, list(PAIRS).index(name), index]))
            os.replace(part, path)
        with np.load(path) as chunk:
            chunks.append(dict(chunk))
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


@torch.no_grad()
def accuracy(pair: ImagePair | AudioPair, captions: Captions, judged: dict[str, np.ndarray]) -> float:
    """Zero-shot accuracy on fresh single frames or sounds."""
    pair.model.eval()
    texts = pair.embed_text(captions.tokens([pair.template.format(name) for name in pair.names]))
    right = 0
    for start in range(0, len(judged["main"]), 250):
        part = slice(start, start + 250)
        guess = (pair.embed(pair.prepare(judged["input"][part])) @ texts.T).argmax(1)
        right += int((guess.numpy() == judged["main"][part]).sum())
    pair.model.train()
    return right / len(judged["main"])


def train(name: str, work: Path, seed: int, share_of_steps: float, preset: str) -> None:
    """Train one pair and write its weights and curve into `work`."""
    torch.set_num_threads(1)
    pair = PAIRS[name](seed, load_preset(preset))
    started = time.process_time()  # this thread's own work, whatever else the machine does
    data = rendered(pair, name, work, seed, max(CHUNK, int(pair.sampled * min(1.0, share_of_steps))))
    parts = max(1, round(JUDGED / CHUNK * min(1.0, share_of_steps)))
    fresh = [pair.render([seed, 10 + list(PAIRS).index(name), index], judged=True) for index in range(parts)]
    judged = {key: np.concatenate([chunk[key] for chunk in fresh]) for key in fresh[0]}

    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 99])
    captioner, captions = Captioner(np.random.default_rng([seed, 100])), Captions(pair.tokenizer)
    modules = nn.ModuleList([pair.model, pair.heads])
    wide = [p for p in modules.parameters() if p.requires_grad and p.ndim > 1]
    narrow = [p for p in modules.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": wide, "weight_decay": 0.05}, {"params": narrow, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=pair.peak_rate, betas=(0.9, 0.98))
    steps = max(2, int(pair.steps * share_of_steps))
    curve = work / f"{name}.jsonl"
    lines = []
    modules.train()
    for step in tqdm(range(steps), desc=f"{name}: train", unit="step", disable=None):
        share = step / steps
        rate = pair.peak_rate * min(1.0, (step + 1) / WARM_UP) * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pair.start_step(share)
        rows = rng.integers(0, len(data["main"]), pair.batch)
        batch = {key: value[rows] for key, value in data.items()}
        written = [
            pair.caption(captioner, *both) for both in zip(batch["main"][:CAPTIONED], batch["trait"], strict=False)
        ]
        named = np.array([mark for _, mark in written])
        true = captions.true(batch["main"], batch["trait"], named, batch["also"])
        samples, auxiliary = pair.learn(batch, rng)
        texts = pair.embed_text(captions.tokens([text for text, _ in written]))
        contrast = caption_loss(samples, texts, pair.scale(), true)
        loss = contrast + max(0.0, 1 - 1.1 * share) * auxiliary
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            lines.append(
                {
                    "step": step + 1,
                    "minutes": round((time.process_time() - started) / 60, 2),
                    "contrastive": round(contrast.item(), 4),
                    "auxiliary": round(auxiliary.item(), 4),
                    "accuracy": round(accuracy(pair, captions, judged), 4),
                }
            )
            write_text(curve, "".join(json.dumps(line) + "\n" for line in lines))
            tqdm.write(f"{name} {lines[-1]}")
            save(pair.state(), work / f"{name}.safetensors")
    tqdm.write(f"{name}: {steps} steps, {(time.process_time() - started) / 60:.1f} minutes of a core")


def save(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as float16 safetensors, without the buffers that the library rebuilds."""
    kept = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
        if not is_rebuilt(name)
    }
    with atomic_path(path) as part:
        save_file(kept, part)


def main() -> None:
    """Parse the arguments and train both pairs side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder for samples, weights and curves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(PAIRS), help="train one pair alone")
    parser.add_argument("--preset", default="tiny", help="preset, or a YAML file, whose architectures are trained")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps and samples, for a quick look")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = [arguments.only] if arguments.only else list(PAIRS)
    # One-thread processes side by side: two threads that share two busy cores are slower and less steady.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=train, args=(name, arguments.work, arguments.seed, arguments.share, arguments.preset))
        for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("training failed")


if __name__ == "__main__":
    main()
