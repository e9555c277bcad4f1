"""Towers with random weights, and the library's own forward to compare them with."""

import copy
import functools
import json

import torch
from open_clip.transformer import VisionTransformer
from standin_towers import StandInBackbone
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.clap_tower import ClapTower
from avfewshot.encoders.clip_tower import ClipTower
from avfewshot.encoders.htsat import build_htsat
from avfewshot.encoders.spectrogram_tower import SpectrogramTower
from avfewshot.encoders.swin import SwinTower, build_swin

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TINY_AUDIO = {"hop": 768, "native_samples": 48_000, "spec_size": 64, "embed_dim": 32, "num_heads": [2, 4, 8, 16]}
HTSAT_TOKENS = [(4096, 96)] * 2 + [(1024, 192)] * 2 + [(256, 384)] * 6 + [(64, 768)] * 2
TINY_VISION = {"image_size": 64, "patch_size": 8, "width": 96, "layers": 12, "heads": 3, "output_dim": 128}


def randomize(module: nn.Module) -> None:
    """Give every parameter and statistic a value that shows: libraries begin with zero biases and unit scales."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "extractor" in name:  # the Fourier matrix and the mel filters are constants
                continue
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.3)
            elif "bias_table" in name:
                parameter.normal_(0, 1)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(-40, 5)
                part.running_var.uniform_(100, 400)


def clap_tower(config=None, *, front_end: str = "slaney", joint_dim: int = 64, seed: int = 0) -> ClapTower:
    """An audio tower; of the size of the `tiny` preset unless told otherwise."""
    config = TINY_AUDIO if config is None else config
    return copy.deepcopy(_build_clap_tower(json.dumps(config), front_end, joint_dim, seed))


@functools.cache  # the library takes a while to fill its Fourier matrix
def _build_clap_tower(config: str, front_end: str, joint_dim: int, seed: int) -> ClapTower:
    torch.manual_seed(seed)
    branch = build_htsat(json.loads(config))
    width = branch.num_features
    projection = nn.Sequential(nn.Linear(width, joint_dim), nn.ReLU(), nn.Linear(joint_dim, joint_dim))
    randomize(branch)
    randomize(projection)
    return ClapTower(branch, projection, front_end)


def clip_tower(*, seed: int = 0, **sizes) -> ClipTower:
    """An image tower; of the size of the `tiny` preset unless told otherwise."""
    torch.manual_seed(seed)
    visual = VisionTransformer(**{"mlp_ratio": 4.0, **TINY_VISION, **sizes})
    randomize(visual)
    return ClipTower(visual.eval(), mean=MEAN, std=STD)


def sounds(count: int, samples: int = 48_000) -> Tensor:
    """`count` different waveforms: chirps in noise, loud at the end and soft at the start, so that seams are heard."""
    time = torch.arange(samples) / 48_000
    pitch = torch.linspace(200, 2_000, count)[:, None]
    chirps = torch.sin(2 * torch.pi * (pitch * time + 900 * time.square()))
    return (0.05 + 0.5 * time) * chirps + 0.02 * torch.randn(count, samples)


def pictures(count: int, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def repeat_pad(waveforms: Tensor, length: int) -> Tensor:
    """laion_clap's data_filling="repeatpad", and the beginning of what is longer."""
    if waveforms.shape[1] >= length:
        return waveforms[:, :length]
    waveforms = waveforms.repeat(1, int(length / waveforms.shape[1]))
    return F.pad(waveforms, (0, length - waveforms.shape[1]))


def library_audio(tower: ClapTower, waveforms: Tensor) -> Tensor:
    """What laion_clap's classes give for the waveforms, repeated to the native length."""
    waveforms = repeat_pad(waveforms, tower.native_samples)
    return tower.audio_projection(tower.audio_branch({"waveform": waveforms})["embedding"])


def normalised(images: Tensor) -> Tensor:
    """What torchvision's ToTensor and Normalize make of uint8 images."""
    return (images.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def swin_tower(version: int = 2, *, seed: int = 0) -> SwinTower:
    """A Swin of three stages for images of 64 x 64, with grids of 16, 8 and 4 and windows of 4."""
    torch.manual_seed(seed)
    name = "swinv2_tiny_window8_256" if version == 2 else "swin_tiny_patch4_window7_224"
    tower = build_swin(name, img_size=64, window_size=4, embed_dim=24, depths=(2, 2, 2), num_heads=(2, 4, 8))
    randomize(tower)
    return tower


def swin_tokens(width: int) -> list[tuple[int, int]]:
    """(tokens, channels) entering each block of a published SwinV2 of that width, for images of 192 x 192."""
    return [(2304, width)] * 2 + [(576, 2 * width)] * 2 + [(144, 4 * width)] * 18 + [(36, 8 * width)] * 2


def shared_towers(image, picture) -> StandInBackbone:
    """One transformer that sees frames and, as pictures, hears."""
    return StandInBackbone(image, SpectrogramTower(image, picture), 50.0, 20.0)
