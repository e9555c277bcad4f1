import pytest
import torch
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
from towers_support import TINY_AUDIO, clap_tower, library_audio, repeat_pad, sounds

from avfewshot.encoders.clap_tower import ClapTower
from avfewshot.encoders.htsat import HTSAT_CONFIGS, build_htsat, htsat_config, load_htsat_module
from avfewshot.errors import UsageError

# Ten seconds at LAION's hop, in an image and a network that are small.
SHALLOW = {"spec_size": 128, "mel_bins": 16, "embed_dim": 32, "depths": [2, 2], "num_heads": [4, 8]}


@pytest.mark.parametrize(
    ("config", "count"), [("HTSAT-tiny", 2), ("HTSAT-base", 2), (TINY_AUDIO, 5)], ids=["tiny", "base", "preset tiny"]
)
def test_walk_equals_the_embedding_of_laion_clap(config, count: int) -> None:
    tower = clap_tower(config)
    waveforms = sounds(count)
    with torch.no_grad():
        expected = library_audio(tower, waveforms)
        embeddings = tower(waveforms)
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # the sounds make a difference
    assert (embeddings - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("seconds", [0.02, 0.37, 1, 2.5, 3, 7, 10, 12.3])
def test_any_length_is_repeated_padded_and_cut_as_laion_clap_does(seconds: float) -> None:
    tower = clap_tower(SHALLOW)
    waveforms = sounds(2, int(seconds * 48_000))
    with torch.no_grad():
        assert (tower(waveforms) - library_audio(tower, waveforms)).abs().max() <= 1e-5


@pytest.mark.parametrize("seconds", [1, 4, 10])
def test_htk_front_end_equals_the_fused_model_fed_by_the_pipeline_of_laion(seconds: int) -> None:
    tower = clap_tower(SHALLOW, front_end="htk")
    sizes = ("spec_size", "embed_dim", "depths", "num_heads", "window_size")
    settings = {name: getattr(tower.config, name) for name in sizes}
    settings |= {"config": tower.audio_branch.config, "enable_fusion": True, "fusion_type": "aff_2d"}
    fused = load_htsat_module().HTSAT_Swin_Transformer(**settings).eval()
    missing, unexpected = fused.load_state_dict(tower.audio_branch.state_dict(), strict=False)
    assert not unexpected
    assert all("fusion_model" in key or "mel_conv2d" in key for key in missing)
    waveforms = sounds(2, seconds * 48_000)
    spectrum = {"n_fft": 1024, "hop_length": 480, "f_min": 50, "f_max": 14_000, "n_mels": 16}
    mel = MelSpectrogram(48_000, **spectrum, norm=None, mel_scale="htk")
    decibels = AmplitudeToDB(top_db=None)(mel(repeat_pad(waveforms, 480_000))).transpose(1, 2)
    with torch.no_grad():
        batch = {"mel_fusion": decibels[:, None].expand(-1, 4, -1, -1), "longer": torch.zeros(2, 1, dtype=torch.bool)}
        expected = tower.audio_projection(fused(batch)["embedding"])
        assert (tower(waveforms) - expected).abs().max() <= 1e-5
        slaney = ClapTower(tower.audio_branch, tower.audio_projection, "slaney")
        assert (slaney(waveforms) - expected).abs().max() > 1e-2  # the wrong front end would show


def test_gradients_reach_the_waveform_as_through_laion_clap() -> None:
    tower = clap_tower(SHALLOW)
    waveforms = sounds(2)
    with torch.inference_mode():
        tower(waveforms)  # what it keeps must serve where gradients flow, too
    waveforms.requires_grad_()
    (expected,) = torch.autograd.grad(library_audio(tower, waveforms).square().sum(), waveforms)
    (gradient,) = torch.autograd.grad(tower(waveforms).square().sum(), waveforms)
    assert expected.abs().max() > 1e-3
    assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_loaded_weights_are_in_effect_at_once() -> None:
    tower, other = clap_tower(seed=0), clap_tower(seed=1)
    waveforms = sounds(3)
    with torch.no_grad():
        before = tower(waveforms)  # position biases are gathered and kept
        tower.load_state_dict(other.state_dict())
        assert torch.equal(tower(waveforms), other(waveforms))
        assert (tower(waveforms) - before).abs().max() > 1e-2
        tower.load_state_dict(clap_tower(seed=2).state_dict(), assign=True)
        assert torch.equal(tower(waveforms), clap_tower(seed=2)(waveforms))
        for block in tower.audio_branch.modules():
            if hasattr(block, "relative_position_bias_table"):
                block.relative_position_bias_table.data.mul_(-1)  # leaves no trace in the version counter
        assert (tower(waveforms) - library_audio(tower, waveforms)).abs().max() <= 1e-5


def test_front_end_stays_in_float32() -> None:
    tower = clap_tower(front_end="htk")
    waveforms = sounds(2)
    expected = tower.front_end(waveforms, tower.audio_branch).clone()
    tower.to(torch.bfloat16)
    assert tower.audio_branch.patch_embed.proj.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        result = tower.front_end(waveforms, tower.audio_branch)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_state_dict_is_that_of_laion_clap() -> None:
    tower = clap_tower()
    keys = [f"audio_branch.{key}" for key in tower.audio_branch.state_dict()]
    keys += [f"audio_projection.{key}" for key in tower.audio_projection.state_dict()]
    assert list(tower.state_dict()) == keys
    assert "audio_branch.tscam_conv.weight" in keys
    assert "audio_branch.spectrogram_extractor.stft.conv_real.weight" in keys


def test_silence_gives_a_finite_embedding_and_waveforms_of_another_shape_are_refused() -> None:
    tower, silence = clap_tower(), torch.zeros(2, 48_000)
    with torch.no_grad():
        assert (tower(silence) - library_audio(tower, silence)).abs().max() <= 1e-5
    for shape in ((48_000,), (2, 1, 48_000), (2, 0)):
        with pytest.raises(ValueError, match=r"shape \[N, samples\] are needed"):
            tower(torch.zeros(shape))


def test_configurations_of_laion_are_known_by_name() -> None:
    assert htsat_config("HTSAT-base").depths == (2, 2, 12, 2)
    assert all(config.frames == 1001 and config.native_samples == 480_000 for config in HTSAT_CONFIGS.values())
    with pytest.raises(UsageError, match="HTSAT-tiny, HTSAT-tiny-win-1536, HTSAT-base, HTSAT-large"):
        htsat_config("HTSAT-huge")
    with pytest.raises(UsageError, match="front_end must be one of slaney, htk, not 'bark'"):
        build_htsat({**TINY_AUDIO, "front_end": "bark"})
    tower = clap_tower()
    with pytest.raises(UsageError, match="slaney, htk"):
        ClapTower(tower.audio_branch, tower.audio_projection, "bark")


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"hop_size": 480}, ["hop_size", "native_samples"]),
        ({"depths": "2262", "hop": -1}, ["depths must be a list", "hop must be a whole number"]),
        ({"native_samples": 960_000}, ["2001 frames, but only 1024 fit"]),
        ({"window_size": 7}, ["windows of 7 do not divide a grid of 64 x 64"]),
        ({"num_heads": [5, 8, 16, 32]}, ["5 heads do not divide 96"]),
        ({"spec_size": 100}, ["multiple of mel_bins"]),
        ({"num_heads": [4, 8]}, ["one entry for each stage"]),
        ({"fmax": 30_000}, ["fmax at most half"]),
        ({"n_fft": 1023}, ["n_fft must be even"]),
    ],
)
def test_sizes_that_do_not_fit_are_all_named(fields, messages: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        htsat_config(fields)
    assert all(message in str(caught.value) for message in messages)


TEN_SECONDS = {**SHALLOW, "hop": 960, "mel_bins": 32, "depths": [2, 2, 2], "num_heads": [4, 8, 8]}
"""Ten seconds in four stretches, whose last stage is 8 x 8 tokens as LAION's: 32 steps of two bands."""


@pytest.mark.parametrize(("seconds", "repeats"), [(10, 1), (7, 1), (3, 3), (1, 10)])
def test_a_window_is_the_own_embedding_of_laion_clap_and_its_seconds_are_means_of_its_grid(seconds, repeats) -> None:
    tower = clap_tower(TEN_SECONDS)
    branch, waveforms = tower.audio_branch, sounds(2, seconds * 48_000)
    with torch.no_grad():
        whole, parts = tower.forward_windows(waveforms)
        assert (whole - library_audio(tower, waveforms)).abs().max() <= 1e-5
        grid = branch({"waveform": repeat_pad(waveforms, 480_000)})["fine_grained_embedding"]
        grid = grid.view(2, 32, -1, grid.shape[-1])[:, :, 0].repeat_interleave(5, dim=1)  # 160 steps of 1/16 second
        periods = grid[:, : 16 * seconds * repeats].view(2, repeats, seconds, 16, -1)
        assert parts.shape == (2, seconds, 64)
        assert (parts - tower.audio_projection(periods.mean((1, 3)))).abs().max() <= 1e-4
    assert (parts - whole[:, None]).abs().max() > 1e-2 or seconds == 1  # the seconds differ from their window


@pytest.mark.parametrize("samples", [0, 47_999, 48_001, 11 * 48_000])
def test_windows_are_whole_seconds_that_fit(samples: int) -> None:
    with pytest.raises(ValueError, match="1 to 10 whole seconds"):
        clap_tower(TEN_SECONDS).forward_windows(torch.zeros(1, samples))
