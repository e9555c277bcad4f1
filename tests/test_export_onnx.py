"""`avfs export`: ONNX Runtime gives the answers of the classifier, without torch."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from media_factory import tone, write_audio, write_media
from methods_worlds import WIDTH, world, world_of_seconds
from standin_towers import make_backbone

from avfewshot.adapters.base import pair_towers
from avfewshot.adapters.registry import build_adapter
from avfewshot.errors import AvfsError, UsageError
from avfewshot.inference import export_onnx
from avfewshot.inference.head import LearnedHead, ZeroShotHead
from avfewshot.inference.loading import load
from avfewshot.inference.logits import ClassTexts
from avfewshot.methods.base import Support
from avfewshot.methods.method import METHODS, find_method
from avfewshot.models.audio_visual import AudioVisualModel

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_classify.py"
WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "torchaudio", "open_clip", "laion_clap", "transformers", "avfewshot"]))
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LABELS = ("red ball", "bell ringing", "dog barking")


def test_the_example_answers_as_the_classifier_does_without_torch(avfs, tmp_path):
    clips = [
        write_media(tmp_path / "both.mp4", seconds=12.0, audio=tone(12.0)),
        write_media(tmp_path / "silent.mp4", seconds=2.0),
        write_audio(tmp_path / "sound.wav", tone(2.0)),
    ]
    labels = [part for label in LABELS for part in ("--label", label)]
    avfs("export", "--backbone", "tiny", "--weights", "random", *labels, "--onnx", "onnx")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, EXAMPLE, tmp_path / "onnx", *clips],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    classifier = load("tiny", weights="random", device="cpu", precision="fp32")
    results = classifier.classify(clips, LABELS, workers=0, segments=True)
    for line, result in zip(map(json.loads, done.stdout.splitlines()), results, strict=True):
        assert line["scores"] == pytest.approx(result.scores, abs=1e-4)
        assert line["seconds"] == [segment.label for segment in result.segments]
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    about = json.loads((tmp_path / "onnx" / "manifest.json").read_text())
    assert about["labels"] == list(LABELS)
    assert about["texts"]["arrays"] == ["frozen_audio", "frozen_visual"]
    with np.load(tmp_path / "onnx" / "texts.npz", allow_pickle=False) as texts:
        np.testing.assert_allclose(texts["frozen_visual"][:-1], classifier.embed_labels(LABELS)[0], atol=1e-6)
    assert all(export_onnx.sha256_file(tmp_path / "onnx" / g["file"]) == g["sha256"] for g in about["graphs"].values())


def learned_head(name, support, texts, labels):
    """The head of a run, as a classifier builds it."""
    scorer = find_method(name).fit(support, texts)
    none = next((label for label in labels if label not in texts.names), None)
    own = SimpleNamespace(scorer=scorer, none=none)
    pairs = (texts.visual, texts.visual_background), (texts.audio, texts.audio_background)
    rows = [np.vstack((values, *[background] * (1 if none is None else 2))) for values, background in pairs]
    asked = texts
    if none is not None:
        asked = type(texts).with_background((*texts.names, none), *rows, scales=texts.scales)
    rows = [torch.from_numpy(values).float() for values in rows]
    spaces = [(ClassTexts(*rows, tuple(labels)), texts.scales)]
    zero_shot = ZeroShotHead(labels, spaces, 0.0, modality="av", fusion="weighted", pool="event")
    return LearnedHead(own, asked, zero_shot, (WIDTH, WIDTH))


def write_head(path, head, present):
    embedded = {
        name: torch.nn.functional.normalize(torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(5)), dim=-1)
        for name in present
    }
    outputs = ["probabilities", "seconds", "weights"]
    return export_onnx._write_graph(path, export_onnx._Answers(head, present), embedded, outputs, 3)


@pytest.mark.parametrize("present", [("visual", "audio"), ("audio",)], ids="+".join)
@pytest.mark.parametrize("name", METHODS)
def test_every_light_method_is_exported(tmp_path, name, present):
    support, texts = world()
    head = learned_head(name, support, texts, texts.names)
    assert write_head(tmp_path / "classify.onnx", head, present)["largest_difference"] < 1e-9


def test_a_run_whose_tuned_part_was_joined_answers_with_it_by_clip_and_by_second(tmp_path):
    support, texts = world(3)
    labels = support.labels.copy()
    labels[labels[:, 3]] = False  # its clips show "none of these"
    head = learned_head("kernel_ridge", Support(support.features, labels), texts, (*texts.names, "nothing"))
    seen = {name: np.random.default_rng(5).normal(size=(4, WIDTH)).astype(np.float32) for name in ("visual", "audio")}
    answers = []
    for tuned in (None, {"light": 0.2, "tuned": 1.0, "other": 0.3}):
        head._scorer.tuned = tuned
        assert write_head(tmp_path / f"{tuned is None}.onnx", head, seen)["largest_difference"] < 1e-9
        session = onnxruntime.InferenceSession(tmp_path / f"{tuned is None}.onnx")
        answers.append(session.run(["probabilities", "seconds"], seen))
    assert all(not np.allclose(plain, joined, atol=1e-3) for plain, joined in zip(*answers, strict=True))


@pytest.mark.parametrize("present", [("visual", "audio"), ("visual",)], ids="+".join)
@pytest.mark.parametrize("name", ["auto", "kernel_ridge", "gda"])
def test_runs_on_labelled_seconds_answer_by_second(tmp_path, name, present):
    support, texts = world_of_seconds(2, 0)
    head = learned_head(name, support, texts, texts.names)
    assert head._scorer.second is not None
    assert write_head(tmp_path / "classify.onnx", head, present)["largest_difference"] < 1e-9
    session = onnxruntime.InferenceSession(tmp_path / "classify.onnx")
    seconds = session.run(["seconds"], {name: np.eye(5, WIDTH, dtype=np.float32) for name in present})[0]
    assert seconds.shape == (5, len(texts.names) + 1)
    np.testing.assert_allclose(seconds.sum(1), 1.0)
    # And where a tuned part was joined, both ways.
    weights = {"light": 0.4, "tuned": 1.2, "other": 0.3}
    head._scorer.tuned = {**weights, "seconds": {**weights, "bias": 0.5, "presence": [0.6, 0.3]}}
    assert write_head(tmp_path / "joined.onnx", head, present)["largest_difference"] < 1e-9
    session = onnxruntime.InferenceSession(tmp_path / "joined.onnx")
    joined = session.run(["seconds"], {name: np.eye(5, WIDTH, dtype=np.float32) for name in present})[0]
    np.testing.assert_allclose(joined.sum(1), 1.0)
    assert not np.allclose(joined, seconds, atol=1e-3)


@pytest.mark.parametrize("clips", [1, 3], ids=["one clip a class", "three"])
def test_none_of_these_and_labels_that_were_not_learnt_keep_their_columns(tmp_path, clips):
    support, texts = world(clips)
    labels = support.labels.copy()
    labels[labels[:, 3]] = False  # its clips show "none of these"
    head = learned_head("kernel_ridge", Support(support.features, labels), texts, (*texts.names, "nothing"))
    assert write_head(tmp_path / "classify.onnx", head, ("visual", "audio"))["largest_difference"] < 1e-9


def test_a_graph_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    support, texts = world()
    monkeypatch.setattr(export_onnx, "LEAST", -0.1)
    with pytest.raises(AvfsError, match="differ"):
        write_head(tmp_path / "classify.onnx", learned_head("zero_shot", support, texts, texts.names), ("audio",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "settings"), [("dgsct", {}), ("lavish", {"reduction": 4}), ("stg_cma", {"reduction": 4})]
)
def test_adapters_between_the_towers_are_one_joint_graph(tmp_path, kind, settings):
    backbone = make_backbone([(10, 8), (10, 8)], [(12, 8), (12, 8)])
    torch.manual_seed(0)
    model = AudioVisualModel(
        backbone, build_adapter(kind, pair_towers(backbone.visual, backbone.audio), settings)
    ).eval()
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        inputs = {"frames": torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), "waveform": torch.randn(6, 48)}
        about = export_onnx._write_graph(
            tmp_path / "joint.onnx", export_onnx._Tower(model, ("visual", "audio")), inputs, ["visual", "audio"], 3
        )
    assert about["inputs"] == ["frames", "waveform"]


def test_what_is_missing_is_told_and_what_hears_whole_clips_is_refused(avfs, tmp_path):
    told = avfs.refused("export", "--backbone", "tiny")
    assert "Where to?" in told
    assert "Which labels?" in told
    classifier = load("tiny", weights="random", device="cpu", precision="fp32", audio_context="clip")
    with pytest.raises(UsageError, match="--audio-context clip"):
        export_onnx.export_onnx(classifier, LABELS, tmp_path)
