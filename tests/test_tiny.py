"""The packaged `tiny` backbone: small, safe, and able to see and hear the toy world."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fewshot_worlds import everywhere_script
from toy_samples import sample_frame, sample_sound

import avfewshot
from avfewshot.encoders import presets
from avfewshot.encoders.text import label_features
from avfewshot.prompts import load_templates
from avfewshot.toyworld.render import write_clip
from avfewshot.toyworld.vocabulary import COMPOSITIONS, OBJECTS, SOUNDS, Composition

FOLDER = Path(presets.__file__).parent / "tiny"


@pytest.fixture(scope="module")
def classifier() -> avfewshot.Classifier:
    return avfewshot.load("tiny", device="cpu", precision="fp32")


def test_weights_are_safetensors_of_at_most_15_mib() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [file.name for file in files] == ["clap.safetensors", "clip.safetensors"]
    assert sum(file.stat().st_size for file in files) <= 15 * 2**20


def test_layers_pair_one_to_one(classifier: avfewshot.Classifier) -> None:
    assert classifier.backbone.visual.depth == classifier.backbone.audio.depth == 12


def test_tiny_names_objects_in_frames_and_sounds_in_seconds(classifier: avfewshot.Classifier) -> None:
    rng = np.random.default_rng(31)
    backbone, templates = classifier.backbone, load_templates("toy")
    frames = [sample_frame(rng, empty=0.0, crowded=0.0) for _ in range(120)]
    seconds = [sample_sound(rng, empty=0.0, crowded=0.0) for _ in range(120)]
    pictures = torch.from_numpy(np.stack([frame.picture for frame in frames])).permute(0, 3, 1, 2)
    waves = torch.from_numpy(np.stack([second.waveform for second in seconds]))
    with torch.inference_mode():
        seen = backbone.visual(pictures) @ label_features(backbone.visual_text, OBJECTS, templates.visual).T
        heard = backbone.audio(waves) @ label_features(backbone.audio_text, SOUNDS, templates.audio).T
    # Far from chance (5 %) and not above what docs/tiny.md states by more than chance.
    assert np.mean(seen.argmax(1).numpy() == [frame.object for frame in frames]) > 0.8
    assert np.mean(heard.argmax(1).numpy() == [second.sound for second in seconds]) > 0.8


def test_fusion_tells_apart_what_neither_sense_can(classifier: avfewshot.Classifier, tmp_path: Path) -> None:
    wanted = [Composition("car", sound) for sound in ("honking", "rumbling", "wailing")]
    wanted += [Composition(name, "honking") for name in ("truck", "boat")]
    for index, composition in enumerate(wanted):
        write_clip(everywhere_script(composition, np.random.default_rng(index), seconds=4), tmp_path / f"{index}.mp4")
    paths = [tmp_path / f"{index}.mp4" for index in range(len(wanted))]
    results = classifier.classify(paths, [composition.name for composition in COMPOSITIONS])
    right = sum(result.label == composition.name for result, composition in zip(results, wanted, strict=True))
    assert right >= 4


def test_words_outside_the_toy_world_are_named(classifier: avfewshot.Classifier) -> None:
    assert classifier.unknown_words(["dog barking", "a violin concerto"]) == ["violin", "concerto"]
    assert classifier.unknown_words(["dog barking"]) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="spawns the training script with two processes")
def test_training_script_is_reproducible(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent.parent / "scripts" / "train_tiny.py"
    if not script.exists():
        pytest.skip("the training script is not part of the wheel")
    command = [sys.executable, str(script), "--work", str(tmp_path / "first"), "--only", "clip", "--share", "0.001"]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    import train_tiny

    threads = torch.get_num_threads()
    (tmp_path / "second").mkdir()
    try:
        train_tiny.train("clip", tmp_path / "second", 0, 0.001, "tiny")
    finally:
        torch.set_num_threads(threads)
    first, second = ((tmp_path / name / "clip.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
