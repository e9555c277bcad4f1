"""`avfs eval RUN --figures DIR`, and the maps of places that it draws."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_support import TINY
from fewshot_worlds import CLASSES, write_ave
from torch.nn import functional as F
from towers_support import clap_tower, clip_tower, pictures, sounds, swin_tower

from avfewshot.adapters.base import pair_layers
from avfewshot.adapters.registry import build_adapter
from avfewshot.data.dataset import Sample
from avfewshot.encoders.picture import Picture
from avfewshot.encoders.spectrogram_tower import SpectrogramTower
from avfewshot.models.audio_visual import AudioVisualModel, weighing
from avfewshot.reports.charts import TONES, drawing, scatter
from avfewshot.reports.supervised import print_results
from avfewshot.supervised.avvp import ParsingTask
from avfewshot.training import recording


def test_places_of_sound_lie_where_the_spectrogram_has_them():
    waves = sounds(2)
    clap = clap_tower()
    patches = clap._patches(clap.front_end(waves, clap.audio_branch)).mean(-1)
    side = clap.config.patch_size
    torch.testing.assert_close(clap.place_map(0, patches), F.avg_pool2d(clap.spectrogram(waves)[:, None], side)[:, 0])
    image = clip_tower()
    shared = SpectrogramTower(image, Picture(48, 20.0, 40))
    pooled = F.avg_pool2d(shared.pictures(waves)[:, None], 8).flatten(1)
    tokens = torch.cat([torch.full((2, 1), 99.0), pooled], dim=1)  # the class token first
    expected = F.avg_pool2d(shared.spectrogram(waves)[:, None], 8)[:, 0]
    torch.testing.assert_close(shared.place_map(3, tokens), expected)


def test_places_of_pictures_come_by_rows_without_the_class_token():
    assert clip_tower().place_map(0, torch.arange(65.0)[None] - 1)[0].tolist() == torch.arange(64.0).view(8, 8).tolist()
    swin = swin_tower(2)
    assert swin.place_map(0, torch.arange(256.0)[None])[0, 1, 0] == 16


def test_points_and_stretches_carry_names_and_escape_them():
    drawn = scatter("t-SNE", [(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)], ["<b>", "dog", "dog"])
    assert (drawn.count("<circle"), drawn.count("<title>dog</title>")) == (3 + 2, 2)
    assert "&lt;b&gt;" in drawn
    assert "<b>" not in drawn
    streams = {"heard": {"dog": {"truth": [(0, 3), (5, 6)], "han": []}}, "seen": {}}
    drawn = drawing("event_chart", "When", 10, streams, TONES)
    assert drawn.count('class="bar"') == 2
    assert "truth: dog heard, 5 to 6 s" in drawn
    assert "nothing, whoever is asked" in drawn


def test_a_table_that_is_too_wide_for_the_terminal_has_a_metric_a_line(monkeypatch, capsys):
    metrics = ["accuracy", *(f"audio_visual_counting_{number}" for number in range(12))]
    figures = {metric: {"mean": 12.5, "low": 10.0, "high": 15.0} for metric in metrics}
    about = {"title": "t", "clips": 9, "split": "test", "headline": "accuracy"}
    monkeypatch.setenv("COLUMNS", "80")
    print_results({**about, "systems": {"most frequent answer": figures, "avst": figures}})
    lines = capsys.readouterr().out.splitlines()
    assert any("most frequent answer" in line and "avst" in line for line in lines)
    assert sum("12.5" in line for line in lines) == 13
    monkeypatch.setenv("COLUMNS", "400")
    print_results({**about, "systems": {"avst": figures}})
    assert "accuracy" in capsys.readouterr().out.splitlines()[2]


def test_classes_and_streams_of_parsing():
    about = {"classes": ["a", "b"]}
    said = np.eye(2, dtype=bool)[[0, 1, 1]], np.zeros((3, 2), dtype=bool)
    assert ParsingTask().streams(said, about)["heard"][:, 1].tolist() == [False, True, True]


def towers():
    return SimpleNamespace(visual=clip_tower(layers=2), audio=clap_tower(), visual_scale=1.0, audio_scale=1.0)


def adapted(kind):
    pair = towers()
    pairs = pair_layers(pair.visual.token_shapes, pair.audio.token_shapes)
    settings = {"groups": 1, "batch_norm": False} if kind == "lavish" else {"hidden": 16}
    return AudioVisualModel(pair, build_adapter(kind, pairs, settings)).eval()


def test_other_adapters_are_weighed_by_what_they_add():
    model = adapted("lavish")
    frames, audio = pictures(2).view(1, 2, 3, 64, 64), sounds(2)[None]
    with torch.no_grad(), weighing(model) as closed:
        model(frames, audio)
    assert not closed["visual"].any()
    for gate in model.adapters.gates():
        torch.nn.init.constant_(gate, 0.5)
    with torch.no_grad(), weighing(model) as maps:
        model(frames, audio)
    assert (maps["visual"].shape, maps["audio"].shape) == ((2, 8, 8), (2, 2, 2))
    assert (maps["visual"] > 0).all()
    assert maps["visual"].std() > 0
    with torch.no_grad():
        model(frames, audio)
    assert not model.adapters._forward_hooks


@pytest.mark.parametrize("kind", ["dgsct", "lavish"])
def test_a_few_shot_report_looks_at_frames_and_sounds(kind, monkeypatch):
    model = adapted(kind)
    texts = SimpleNamespace(projected=lambda one: SimpleNamespace(visual=torch.ones(2, model.visual_tower.output_dim)))
    few_shot = SimpleNamespace(
        config=SimpleNamespace(window=2),
        device="cpu",
        dataset=SimpleNamespace(classes=("dog", "cat")),
        evaluator=SimpleNamespace(zero_shot=AudioVisualModel(towers()), texts=texts),
    )
    monkeypatch.setattr(recording, "_truths", lambda *_: None)
    found = recording._look(few_shot, model, Sample("clip", (1,), "test"), pictures(2).view(2, 3, 64, 64), sounds(2))
    what = "spatial attention, last layer" if kind == "dgsct" else "what is added, last layer"
    assert [heat.title for heat in found.heats[-2:]] == [what, f"{what}, of sound"]
    assert [bool(heat.over) for heat in found.heats[-2:]] == [False, True]
    assert [(len(heat.values), len(heat.values[0])) for heat in found.heats[-2:]] == [(8, 8), (2, 2)]
    assert len(found.gates) == (2 if kind == "dgsct" else 0)  # the records reach both who ask for them


def test_the_page_of_a_run_with_adapters(avfs, tmp_path):
    ave = write_ave(tmp_path / "data")
    folder, _ = avfs.trained("ave", ave, *TINY, "--epochs", "1", "--adapter-kind", "dgsct")
    clips = avfs.json("eval", folder, "--figures", "drawn")["clips"]
    page = (tmp_path / "drawn" / "figures.html").read_text()
    assert re.findall(r"<figcaption>(.*?): \d+\.\d % have a neighbour", page) == ["frozen towers", "with adapters"]
    assert "spatial attention (Eq. 4)" in page
    seconds = len(set(re.findall(r"frame, second (\d+)", page)))
    assert page.count('class="panel"') == 2 * 2 * seconds * min(clips, 4)
    maps = re.findall(r'data:image/png;base64,([^"]+)', page)
    assert len(set(maps)) > len(maps) // 2  # each second and modality has its own
    assert page.count(" seen and heard, ") >= clips  # truth at the least
    assert all(name in page for name in ("truth", "cmbs", "zero-shot by second", *CLASSES))
