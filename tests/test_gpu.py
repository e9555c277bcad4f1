"""On a real CUDA device: the same results as on a processor, recorded passes, shorter formats, memory that ends."""

import copy
import functools
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_support import execute
from fewshot_worlds import write_class_folders
from safetensors.torch import load_file
from torch.nn import functional as F

from avfewshot import load
from avfewshot.config import TrainingConfig
from avfewshot.encoders.backbone import build_backbone
from avfewshot.evaluation.predictions import PredictionConfig
from avfewshot.inference.devices import PRECISIONS
from avfewshot.inference.logits import ClassTexts
from avfewshot.models.build import build_model
from avfewshot.training.distributed import single_device
from avfewshot.training.objective import Objective, TrainingClip
from avfewshot.training.tasks import FewShotTask
from avfewshot.training.trainer import Trainer
from avfewshot.training.validation import Validator
from avfewshot.tuning.fit import TuningClip, answers, tune
from avfewshot.tuning.methods import TUNED

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

CLASSES = 5


def noise(count: int, seconds: int = 3, seed: int = 0) -> list[TrainingClip]:
    generator = torch.Generator().manual_seed(seed)
    eye = torch.eye(CLASSES, dtype=torch.bool)
    return [
        TrainingClip(
            torch.randint(256, (seconds, 3, 64, 64), dtype=torch.uint8, generator=generator),
            0.1 * torch.randn(seconds, 48_000, generator=generator),
            eye[index % CLASSES],
        )
        for index in range(count)
    ]


@functools.cache
def tiny():
    return build_backbone("tiny")


def setting(device: str, *, graphs: bool = False, micro: int = 4, **changes) -> Trainer:
    """A training of `tiny` whose adapters have woken up; batches of up to 64 clips."""
    settings = {"hidden": 16, "precision": "fp32", "lr": 1e-3, "batch_size": 64, "micro_batch": micro, "epochs": 5}
    config = TrainingConfig(task="ave_cls", cuda_graphs=graphs, **{**settings, **changes})
    place = torch.device(device)
    backbone = copy.deepcopy(tiny()).to(place, PRECISIONS[config.precision])
    model = build_model(backbone, config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*model.adapters.parameters(), *model.projectors.parameters()):
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    widths = backbone.visual.output_dim, backbone.audio.output_dim
    texts = ClassTexts(*(F.normalize(torch.randn(CLASSES + 1, w, generator=generator), dim=-1) for w in widths))
    task = FewShotTask(
        model,
        config,
        source=SimpleNamespace(count=lambda rank, world: 10 * config.batch_size),
        labels=[],
        objective=Objective(config, texts.to(place), per_second=False),
        validator=Validator(PredictionConfig("ave_cls", "weighted", "mean"), None, (), lambda model: ()),
        describe=lambda metrics: None,
        seed=1,
    )
    model.train()
    return Trainer(single_device(place, config.precision), model, config, task, folder=Path("unused"), seed=1)


def train(made: Trainer, batches: list[list[TrainingClip]]) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = []
    for step, batch in enumerate(batches):
        losses.append(made.accumulate(batch)["loss"])
        made.descend(step)
    return losses, made.model.trainable_state()


def gradients(made: Trainer, clips: list[TrainingClip]) -> dict[str, torch.Tensor]:
    made.accumulate(clips)
    return {name: p.grad.cpu().clone() for name, p in made.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("precision", "cosine"), [("fp32", 0.99999), ("bf16", 0.99), ("fp16", 0.999)])
def test_embeddings_are_those_of_the_processor(precision, cosine):
    [clip] = noise(1)
    arguments = clip.frames[None], clip.audio[None]
    with torch.inference_mode():
        expected = setting("cpu").model.eval()(*arguments)
        found = setting("cuda", precision=precision).model.eval()(*(part.cuda() for part in arguments))
    for one, other in zip(expected, found, strict=True):
        assert F.cosine_similarity(one, other.cpu(), dim=-1).min() > cosine


@pytest.mark.parametrize("objective", ["classes", "contrastive"])
def test_gradients_are_those_of_the_processor(objective):
    clips = noise(4)
    expected = gradients(setting("cpu", objective=objective), clips)
    found = gradients(setting("cuda", objective=objective), clips)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"micro": 4, "checkpointing": False}, 0),
        ({"micro": 2, "checkpointing": False}, 0),
        ({"micro": 2, "checkpointing": True}, 0),
        ({"micro": 2, "objective": "contrastive"}, 1e-5),
        ({"micro": 2, "precision": "bf16"}, 2e-2),
        ({"micro": 2, "precision": "fp16"}, 2e-2),
    ],
)
def test_recorded_passes_train_like_ordinary_ones(settings, tolerance):
    batches = [noise(4, seed=seed) for seed in range(5)]
    plain, recorded = setting("cuda", **settings), setting("cuda", graphs=True, **settings)
    expected, found = train(plain, batches), train(recorded, batches)
    assert recorded.runner.shapes == 1
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=0)
    assert tolerance or all(torch.equal(found[1][name], tensor) for name, tensor in expected[1].items())


def test_recorded_passes_beside_ordinary_ones():
    """Clips of several lengths in a batch, some without sound: what cannot be replayed is run as usual."""
    batches = []
    for seed in range(6):
        clips = [*noise(2, seconds=3, seed=seed), *noise(2, seconds=2, seed=50 + seed)]
        clips[0] = TrainingClip(clips[0].frames, None if seed % 3 == 2 else clips[0].audio, clips[0].labels)
        batches.append(clips)
    plain, recorded = setting("cuda"), setting("cuda", graphs=True)
    expected, found = train(plain, batches), train(recorded, batches)
    assert recorded.runner.shapes == 2
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)


def test_gradients_of_several_batches_are_summed_up():
    batches = [noise(4, seed=seed) for seed in range(3)]
    sums = []
    for graphs in (False, True):
        made = setting("cuda", graphs=graphs, batch_size=4)
        train(made, [noise(4, seed=9)] * 3)
        made.accumulate([clip for batch in batches for clip in batch])
        sums.append({name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None})
    for name, gradient in sums[0].items():
        torch.testing.assert_close(sums[1][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("graphs", [False, True])
def test_memory_that_ends_halves_the_micro_batch(graphs, caplog):
    free, total = torch.cuda.mem_get_info()
    made, few = (setting("cuda", graphs=graphs, micro=size, checkpointing=False) for size in (64, 8))
    clips = noise(64, seconds=4)
    train(few, [clips[:8]])
    torch.cuda.empty_cache()
    taken, bound = torch.cuda.memory_allocated(), 2**29
    if free < bound + taken:
        pytest.skip("others use the GPU's memory")
    torch.cuda.set_per_process_memory_fraction((taken + bound) / total)
    try:
        with caplog.at_level(logging.WARNING):
            losses, _ = train(made, [clips] * 4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert made.micro_batch < 64
    assert any("ran out of memory with 64 clips at once; going on with 32" in entry.message for entry in caplog.records)
    assert losses[-1] < losses[0]


# The commands.


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_class_folders(folder / "my_clips")
    (folder / "labels.txt").write_text("car honking\nclock ticking\ndog barking\n")
    (folder / "avfs.toml").write_text('backbone = "tiny"\n')
    return folder


def call(world, *arguments: str) -> str:
    status, out, err = execute(world, *arguments)
    assert status == 0, err
    assert "arning" not in err
    return out


def test_zeroshot_says_the_same_on_either_device(world):
    answers = []
    for device in ("cpu", "cuda"):
        call(world, "zeroshot", "--labels", "labels.txt", "--device", device, "my_clips", "--output", f"{device}.json")
        answers.append(json.loads((world / f"{device}.json").read_text()))
    found = [[clip["scores"] for clip in document["clips"]] for document in answers]
    assert len(found[0]) == 18
    same = sum(max(a, key=a.get) == max(b, key=b.get) for a, b in zip(*found, strict=True))
    assert same >= 17  # bf16 on the GPU


def few_shot(world, name: str, *more: str):
    call(
        world, "fewshot", "--data", "my_clips", "--shots", "2", "--epochs", "3", "--hidden", "8", "--name", name, *more
    )
    [folder] = (world / "runs" / "folder").glob(f"*-{name}")
    results = json.loads((folder / "results.json").read_text())
    checkpoints = sorted((folder / "seed-1").glob("checkpoints/*/adapter.safetensors"))
    return results["seeds"][0], load_file(checkpoints[-1])


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        *(
            (precision, ("--precision", precision), ("--precision", precision))
            for precision in ("fp32", "bf16", "fp16")
        ),
        ("graphs", ("--precision", "fp32", "--cuda-graphs"), ("--precision", "fp32", "--no-cuda-graphs")),
    ],
)
def test_fewshot_gives_the_same_twice_and_with_recorded_passes(world, name, first, second):
    one, two = few_shot(world, f"{name}-one", *first), few_shot(world, f"{name}-two", *second)
    assert one[0] == two[0]
    assert all(torch.equal(one[1][key], tensor) for key, tensor in two[1].items())


@pytest.mark.parametrize("name", sorted(TUNED))
def test_prompts_and_updates_are_tuned_on_the_device(name):
    backbone = copy.deepcopy(tiny()).to("cuda")
    widths = backbone.visual.output_dim, backbone.audio.output_dim
    clips = [TuningClip(clip.frames, clip.audio, clip.labels) for clip in noise(CLASSES)]
    if not TUNED[name].uses_pixels:
        clips = [TuningClip(*(F.normalize(torch.randn(3, w), dim=-1) for w in widths), clip.labels) for clip in clips]
    texts = [f"class {number}" for number in range(CLASSES)]
    method = tune(name, backbone, [*texts, "nothing"], clips, shots=1, seed=0, max_steps=2)
    for said in answers(method, [(clips[0].visual, clips[0].audio)])[0]:
        assert said.device.type == "cpu"
        assert said.isfinite().all()


def test_trained_adapters_are_read_on_the_processor(world):
    few_shot(world, "moved")
    [folder] = (world / "runs" / "folder").glob("*-moved")
    classifier = load(adapter=folder, device="cpu")
    assert classifier.device.type == "cpu"
