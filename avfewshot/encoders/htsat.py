"""HTS-AT, the audio transformer of LAION's CLAP: its configuration, and the library's own classes built from it.

Source of the architecture: Chen et al., "HTS-AT: A Hierarchical Token-Semantic Audio Transformer", ICASSP 2022
(arXiv 2202.00874); of its use in CLAP: Wu et al., ICASSP 2023 (arXiv 2211.06687).
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.lean_imports import library_module
from avfewshot.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

FRONT_ENDS = ("slaney", "htk")


@dataclass(frozen=True)
class HtsatConfig:
    """Sizes of an HTS-AT; the defaults are LAION's ``HTSAT-tiny``."""

    sample_rate: int = 48_000  # of the waveforms
    n_fft: int = 1024  # samples of the analysis window
    hop: int = 480  # samples from one window to the next
    mel_bins: int = 64
    fmin: float = 50  # lower end of the mel bands in hertz
    fmax: float = 14_000
    native_samples: int = 480_000  # length of the waveforms that the tower was trained on
    spec_size: int = 256  # side of the square image that the spectrogram is folded into; a multiple of `mel_bins`
    patch_size: int = 4
    embed_dim: int = 96  # width of the tokens in the first stage; it doubles from stage to stage
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of each stage
    num_heads: tuple[int, ...] = (4, 8, 16, 32)  # of each stage
    window_size: int = 8  # side of the attention windows, in tokens
    class_num: int = 527  # outputs of the classification head; never computed, but part of LAION's state dicts
    front_end: str = "slaney"  # the tower's own mel scale; "htk": that of LAION's checkpoints with feature fusion

    @property
    def frames(self) -> int:
        """Frames of the spectrogram of `native_samples`."""
        return self.native_samples // self.hop + 1

    @property
    def columns(self) -> int:
        """Frames that fit into the image."""
        return self.spec_size * (self.spec_size // self.mel_bins)


HTSAT_CONFIGS: Mapping[str, HtsatConfig] = MappingProxyType(
    {
        "HTSAT-tiny": HtsatConfig(),
        "HTSAT-tiny-win-1536": HtsatConfig(n_fft=1536),
        "HTSAT-base": HtsatConfig(embed_dim=128, depths=(2, 2, 12, 2)),
        "HTSAT-large": HtsatConfig(embed_dim=256, depths=(2, 2, 12, 2)),
    }
)
"""LAION's configurations by the name that laion_clap gives them."""


def htsat_config(name_or_fields: str | Mapping[str, Any]) -> HtsatConfig:
    """A configuration that can be built: by a key of :data:`HTSAT_CONFIGS`, or of fields of :class:`HtsatConfig`.

    A :class:`UsageError` lists all faults.
    """
    if isinstance(name_or_fields, str):
        if name_or_fields not in HTSAT_CONFIGS:
            message = f"There is no audio tower {name_or_fields!r}."
            raise UsageError(message, hint=f"Valid ones: {', '.join(HTSAT_CONFIGS)}.")
        return HTSAT_CONFIGS[name_or_fields]
    known = [field.name for field in fields(HtsatConfig)]
    if unknown := [str(key) for key in name_or_fields if key not in known]:
        raise UsageError(f"Unknown fields of an HTS-AT: {', '.join(unknown)}.", hint=f"Valid ones: {', '.join(known)}.")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in name_or_fields.items()
    }
    config = HtsatConfig(**values)
    if faults := _faults(config):
        raise UsageError(f"The HTS-AT cannot be built: {'; '.join(faults)}.")
    return config


def build_htsat(name_or_fields: str | Mapping[str, Any]) -> nn.Module:
    """Build laion_clap's own HTS-AT with random weights (from torch's global generator), in evaluation mode.

    Its ``config.htsat`` is the configuration, see :func:`htsat_config`.
    """
    config = htsat_config(name_or_fields)

    def same(*names: str) -> dict[str, Any]:
        return {name: getattr(config, name) for name in names}

    # The attributes and arguments that the library reads, by the library's names.
    settings = types.SimpleNamespace(**same("sample_rate", "mel_bins", "fmin", "fmax"), htsat=config)
    settings.window_size, settings.hop_size = config.n_fft, config.hop
    sizes = same("spec_size", "patch_size", "embed_dim", "window_size")
    sizes |= {"patch_stride": (config.patch_size, config.patch_size), "num_classes": config.class_num}
    sizes |= {"depths": list(config.depths), "num_heads": list(config.num_heads)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
        branch = load_htsat_module().HTSAT_Swin_Transformer(**sizes, config=settings)
    # A complex matrix of 16 MB that the library needs no more once its convolutions are filled.
    del branch.spectrogram_extractor.stft.W
    return branch.eval()


def load_htsat_module() -> types.ModuleType:
    """laion_clap's ``clap_module.htsat`` alone, since ``import laion_clap`` asks the network for three tokenizers."""
    return library_module("laion_clap", "htsat", "clap_module")


def _faults(config: HtsatConfig) -> list[str]:
    """What keeps `config` from being built, each in one clause; empty when it is sound."""
    faults = []
    for field in fields(config):
        (fits, wanted), value = _FORMS[field.type], getattr(config, field.name)
        if not fits(value):
            faults.append(f"{field.name} must be {wanted}, not {value!r}")
    if faults:
        return faults
    if len(config.depths) != len(config.num_heads):
        faults.append("depths and num_heads need one entry for each stage")
    if config.fmax > config.sample_rate / 2 or config.fmin >= config.fmax:
        faults.append("fmin must be below fmax, and fmax at most half of sample_rate")
    if config.n_fft % 2:
        faults.append("n_fft must be even")
    if config.native_samples <= config.n_fft // 2:
        faults.append(f"native_samples must be more than {config.n_fft // 2}, half of n_fft")
    if config.spec_size % config.mel_bins or config.spec_size % config.patch_size:
        faults.append("spec_size must be a multiple of mel_bins and of patch_size")
    if faults:
        return faults
    if config.frames > config.columns:
        faults.append(f"the spectrogram has {config.frames} frames, but only {config.columns} fit into spec_size")
    last = len(config.depths) - 1
    grid = config.spec_size // config.patch_size
    for stage, heads in enumerate(config.num_heads):
        side = grid >> stage
        if config.embed_dim * 2**stage % heads:
            faults.append(f"stage {stage}: {heads} heads do not divide {config.embed_dim * 2**stage} channels")
        if side << stage != grid or side < 1:
            faults.append(f"stage {stage}: a grid of {grid} x {grid} patches cannot be halved {stage} times")
        elif side > config.window_size and side % config.window_size:
            faults.append(f"stage {stage}: windows of {config.window_size} do not divide a grid of {side} x {side}")
        elif stage == last and side < config.spec_size // config.mel_bins:
            faults.append(
                f"stage {stage}: a grid of {side} x {side} is less than {config.spec_size // config.mel_bins}"
            )
    return faults


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_whole, value))


def _is_hertz(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


_FORMS: Mapping[Any, tuple[Callable[[Any], bool], str]] = {
    "str": (FRONT_ENDS.__contains__, f"one of {', '.join(FRONT_ENDS)}"),
    "tuple[int, ...]": (_is_list, "a list of whole numbers above 0"),
    "float": (_is_hertz, "a number of hertz"),
    "int": (_is_whole, "a whole number above 0"),
}
