"""CoOp, CoCoOp, MaPLe, CLIP-LoRA: published sizes, identity at the start, learning, saving."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.text import RobertaTextBranch
from avfewshot.errors import DataError
from avfewshot.tuning.fit import STATE_NAME, TuningClip, answers, clip_loss, load, save, tune
from avfewshot.tuning.layers import PromptedText
from avfewshot.tuning.methods import TUNED, ClipLora, CoCoOp, CoOp, MaPLe

TEXTS = ("dog barking", "cat meowing", "car honking", "nothing")


@pytest.fixture(scope="module")
def tiny():
    return build_backbone("tiny")


@pytest.fixture(scope="module")
def vit_b_16(tiny):
    """A backbone whose visual half has the published architecture, with random weights."""
    import open_clip

    from avfewshot.encoders.clip_tower import ClipTower
    from avfewshot.encoders.text import OpenClipTextBranch
    from avfewshot.encoders.tokenizer import ClipTokenizer

    clip = open_clip.create_model("ViT-B-16", load_weights=False, force_custom_text=True)
    return SimpleNamespace(
        visual=ClipTower(clip.visual, mean=(0.5,) * 3, std=(0.5,) * 3),
        visual_text=OpenClipTextBranch(clip.text, ClipTokenizer(), 512, "random"),
        audio=tiny.audio,
        audio_text=tiny.audio_text,
        visual_scale=100.0,
        audio_scale=tiny.audio_scale,
    )


def clips_for(backbone, pixels: bool, count: int = 6, seconds: int = 2):
    generator = torch.Generator().manual_seed(1)
    size, widths = backbone.visual.image_size, (backbone.visual.output_dim, backbone.audio.output_dim)
    result = []
    for index in range(count):
        if pixels:
            visual = torch.randint(0, 256, (seconds, 3, size, size), dtype=torch.uint8, generator=generator)
            audio = 0.1 * torch.randn(seconds, 48000, generator=generator)
        else:
            visual, audio = (F.normalize(torch.randn(seconds, w, generator=generator), dim=-1) for w in widths)
        result.append(TuningClip(visual, audio, torch.eye(3, dtype=torch.bool)[index % 3]))
    return result


@pytest.mark.parametrize(
    ("method", "parameters"), [(CoOp, 8_192), (CoCoOp, 35_360), (MaPLe, 3_555_072), (ClipLora, 184_320)]
)
def test_learned_parameters_of_the_visual_side_are_as_many_as_published(vit_b_16, method, parameters):
    learned = method(vit_b_16, TEXTS).named_parameters()
    assert sum(parameter.numel() for name, parameter in learned if name.split(".")[1] == "visual") == parameters


def test_without_context_a_prompted_text_is_the_branchs_own_and_context_equals_the_words_it_was_copied_from(tiny):
    for branch in (tiny.visual_text, tiny.audio_text):
        prompted = PromptedText(branch, TEXTS, 0)
        ours = prompted(torch.zeros(0, prompted.width))
        assert torch.allclose(ours, branch.encode([f"{text}." for text in TEXTS]), atol=1e-6)
    branch, prompted = tiny.visual_text, PromptedText(tiny.visual_text, ["dog", "a cat"], 2)
    ours = prompted(prompted.embedding_of("red car"))
    assert torch.allclose(ours, branch.encode(["red car dog.", "red car a cat."]), atol=1e-5)


def test_roberta_reads_context_as_it_reads_words():
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip

    class Words:
        PAD = 1

        def __call__(self, texts):
            rows = [[0, *(3 + sum(map(ord, word)) % 90 for word in text.split()), 2] for text in texts]
            longest = max(map(len, rows))
            return torch.tensor([row + [1] * (longest - len(row)) for row in rows])

    model = RobertaModel(config).eval()
    branch = RobertaTextBranch(Words(), 8, "random", model=model, projection=torch.nn.Linear(16, 8))
    prompted = PromptedText(branch, ["dog", "one two three"], 2)
    ours = prompted(prompted.embedding_of("red car"))
    assert torch.allclose(ours, branch.encode(["red car dog.", "red car one two three."]), atol=1e-5)


def test_low_rank_updates_change_nothing_at_the_start_and_leave_the_backbone_alone(tiny):
    before = copy.deepcopy(tiny.visual.state_dict())
    method = ClipLora(tiny, TEXTS)
    clip = clips_for(tiny, pixels=True, count=1)[0]
    plain = F.normalize(tiny.visual(clip.visual), dim=-1), F.normalize(tiny.audio(clip.audio), dim=-1)
    assert torch.allclose(method.embed("visual", clip.visual), plain[0], atol=1e-5)
    assert torch.allclose(method.embed("audio", clip.audio), plain[1], atol=1e-5)
    tune("clip-lora", tiny, TEXTS, clips_for(tiny, pixels=True), shots=1, seed=0, max_steps=2)
    assert tiny.visual.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in tiny.visual.state_dict().items())


@pytest.mark.parametrize("name", ["coop", "clip-lora"])
def test_a_training_that_was_stopped_goes_on_to_the_bit_and_one_that_is_done_is_not_done_again(tiny, tmp_path, name):
    clips = clips_for(tiny, TUNED[name].uses_pixels)
    told = []

    def trained(clips=clips, stop_after=100, **more):
        told.append([])
        options = {"shots": 1, "seed": 3, "max_steps": 6, "begin": lambda *counts: told[-1].append(counts), **more}
        options["stopping"] = lambda: len(told[-1]) > stop_after
        return tune(name, tiny, TEXTS, clips, advance=lambda: told[-1].append("step"), **options).state_dict()

    def same(one, other):
        return all(torch.equal(one[key], other[key]) for key in one)

    straight = trained()
    assert not same(trained(place=tmp_path, stop_after=2), straight)
    torch.rand(7)  # elsewhere
    assert same(trained(place=tmp_path), straight)
    assert same(trained(place=tmp_path), straight)
    assert told[1:] == [[(6, 0), "step", "step"], [(6, 2), *["step"] * 4], [(6, 6)]]
    for other in ({"clips": clips[1:]}, {"seed": 4}, {"max_steps": 5}):
        trained(place=tmp_path, stop_after=1, **other)
        assert told.pop()[0][1] == 0
    trained(place=tmp_path)
    content = bytearray((tmp_path / STATE_NAME).read_bytes())
    for damaged in (content[:-4], content[:-1] + bytes([content[-1] ^ 1]), b"", b"nothing"):
        (tmp_path / STATE_NAME).write_bytes(damaged)
        assert same(trained(place=tmp_path), straight)
        assert told.pop()[0] == (6, 0)


@pytest.mark.parametrize("name", sorted(TUNED))
def test_training_lowers_the_loss_is_seeded_and_survives_a_file(tiny, tmp_path, name):
    clips = clips_for(tiny, TUNED[name].uses_pixels, count=4, seconds=1)
    options = {"shots": 2, "seed": 3, "max_steps": 10}
    method = tune(name, tiny, TEXTS, clips, **options)
    untrained = tune(name, tiny, TEXTS, clips, **options | {"max_steps": 1})
    assert clip_loss(method, clips).item() < clip_loss(untrained, clips).item()
    again = tune(name, tiny, TEXTS, clips, **options)
    save(method, tmp_path)
    stored = load(tmp_path, tiny)
    queries = [(clip.visual, clip.audio) for clip in clips[:2]] + [(clips[0].visual, None), (None, clips[0].audio)]
    for first, second, third in zip(*(answers(m, queries) for m in (method, again, stored)), strict=True):
        for a, b, c in zip(first, second, third, strict=True):
            assert (a is None) == (b is None) == (c is None)
            if a is not None:
                assert a.shape == (1, len(TEXTS))
                assert torch.equal(a, b)
                assert torch.equal(a, c)


def test_recipes_give_the_published_number_of_steps():
    assert CoOp.recipe.steps(1, 40) == (100, 2)  # 50 epochs of two batches
    assert CoOp.recipe.steps(2, 40) == (200, 2)
    assert CoOp.recipe.steps(4, 32) == (100, 1)
    assert CoOp.recipe.steps(16, 32) == (200, 1)
    assert CoOp.recipe.steps(32, 32) == (200, 1)
    assert MaPLe.recipe.steps(16, 9) == (15, 3)
    assert ClipLora.recipe.steps(2, 40) == (1000, 2)


@pytest.mark.parametrize(("name", "optimizer"), [("coop", "SGD"), ("clip-lora", "AdamW")])
def test_the_learning_rate_goes_by_the_recipe(tiny, monkeypatch, name, optimizer):
    groups = []
    original = getattr(torch.optim, optimizer).step

    def step(self, *arguments):
        groups.append(dict(self.param_groups[0]))
        return original(self, *arguments)

    monkeypatch.setattr(getattr(torch.optim, optimizer), "step", step)
    clips = clips_for(tiny, TUNED[name].uses_pixels, seconds=1)[:2]
    tune(name, tiny, TEXTS, clips, shots=1, seed=0, max_steps=3)
    total = 50 if name == "coop" else 500
    recipe = TUNED[name].recipe
    for number, group in enumerate(groups):
        cosine = 0.5 * (1 + math.cos(math.pi * number / total))
        rate = recipe.final_lr + (recipe.lr - recipe.final_lr) * cosine
        assert group["lr"] == pytest.approx(1e-5 if name == "coop" and number == 0 else rate)  # CoOp warms up
        assert group["weight_decay"] == recipe.weight_decay
    assert len({group["lr"] for group in groups}) == 3
    assert groups[0].get("momentum", 0.9) == 0.9


def test_every_clip_comes_once_an_epoch_in_an_order_of_the_seed(tiny, monkeypatch):
    clips, orders = clips_for(tiny, pixels=False), {}
    for seed in (1, 2):
        order = orders[seed] = []

        def spy(method, batch, order=order):
            order.append(next(index for index, clip in enumerate(clips) if clip is batch[0]))
            return clip_loss(method, batch)

        monkeypatch.setattr("avfewshot.tuning.fit.clip_loss", spy)
        tune("cocoop", tiny, TEXTS, clips, shots=1, seed=seed, max_steps=12)
    assert all(sorted(part) == list(range(6)) for order in orders.values() for part in (order[:6], order[6:]))
    assert orders[1] != orders[2]
    assert orders[1][:6] != orders[1][6:]


@pytest.mark.parametrize(("name", "expected"), [("clip-lora", 1), ("maple", 3)])
def test_clip_lora_draws_one_second_of_each_clip(tiny, monkeypatch, name, expected):
    drawn = []

    def spy(method, batch):
        drawn.extend((len(clip.visual), len(clip.audio), clip.labels.nonzero()[:, 1].tolist()) for clip in batch)
        return clip_loss(method, batch)

    monkeypatch.setattr("avfewshot.tuning.fit.clip_loss", spy)
    [clip] = clips_for(tiny, pixels=True, count=1, seconds=3)
    seconds = TuningClip(clip.visual, clip.audio, torch.eye(4, dtype=torch.bool)[:3])
    tune(name, tiny, TEXTS, [seconds], shots=1, seed=0, max_steps=5)
    assert all(row == (expected, expected, row[2]) and len(row[2]) == expected for row in drawn)
    assert {second for row in drawn for second in row[2]} == {0, 1, 2}, "each comes, with its own label"


def test_dropout_acts_in_training_alone(tiny, monkeypatch):
    active = []

    def spy(method, batch):
        active.append(all(update.learning for updates in method.updates.values() for update in updates))
        return clip_loss(method, batch)

    monkeypatch.setattr("avfewshot.tuning.fit.clip_loss", spy)
    method = tune("clip-lora", tiny, TEXTS, clips_for(tiny, pixels=True, seconds=1)[:1], shots=1, seed=0, max_steps=1)
    assert active == [True]
    assert not any(update.learning for updates in method.updates.values() for update in updates)


def test_texts_that_were_kept_are_encoded_anew_after_a_training(tiny):
    method = CoOp(tiny, TEXTS)
    clip = clips_for(tiny, pixels=False, count=1)[0]
    [before] = answers(method, [(clip.visual, clip.audio)])
    with torch.no_grad():
        method.context["visual"].add_(1.0)
    [kept] = answers(method, [(clip.visual, clip.audio)])
    assert torch.equal(kept[0], before[0])
    method.learning(False)
    [after] = answers(method, [(clip.visual, clip.audio)])
    assert not torch.equal(after[0], before[0])


def test_what_a_clip_looks_like_shifts_the_context_of_cocoop(tiny):
    method = CoCoOp(tiny, TEXTS)
    one, two = clips_for(tiny, pixels=False, count=2, seconds=1)
    mixed = torch.cat((one.visual, two.visual))
    alone, beside = method(one.visual, None)[0], method(mixed, None)[0][:1]
    assert not torch.allclose(alone, beside, atol=1e-5)  # the same second in another clip


def test_several_labels_share_the_target_and_seconds_are_samples_where_seconds_are_labelled(tiny):
    clip = clips_for(tiny, pixels=False, count=1)[0]
    method = CoOp(tiny, TEXTS)
    logits = method(clip.visual, clip.audio)
    visual, audio = (part[:, :-1].mean(0, keepdim=True) for part in logits)
    target, labels = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([1, 1, 0], dtype=torch.bool)
    expected = (F.cross_entropy(visual, target) + F.cross_entropy(audio, target)) / 2
    assert torch.allclose(clip_loss(method, [TuningClip(clip.visual, clip.audio, labels)]), expected)
    seconds = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    expected = F.cross_entropy(torch.cat(logits), torch.tensor([0, 3, 0, 3]))
    assert torch.allclose(clip_loss(method, [TuningClip(clip.visual, clip.audio, seconds)]), expected)


def test_maples_prompts_act_in_every_layer_of_the_visual_tower(tiny):
    method = MaPLe(tiny, TEXTS)
    clip = clips_for(tiny, pixels=True, count=1, seconds=1)[0]
    before = method.embed("visual", clip.visual)
    for layer in range(min(tiny.visual.depth, 9)):
        with torch.no_grad():
            method.maps["visual"][layer].bias.copy_(torch.randn(method.maps["visual"][layer].bias.shape))
        after = method.embed("visual", clip.visual)
        assert not torch.allclose(after, before, atol=1e-6)
        before = after


def test_a_file_of_something_else_is_refused_by_name(tiny, tmp_path):
    (tmp_path / "tuned.json").write_text('{"method": "unknown", "texts": []}')
    with pytest.raises(DataError, match="holds no tuned method"):
        load(tmp_path, tiny)
