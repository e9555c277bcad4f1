"""docs/extending.md: an adapter, a method, a head and a data set of a package outside this one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from standin_towers import make_backbone, make_inputs

from avfewshot.adapters.base import pair_layers
from avfewshot.adapters.registry import adapter_names, build_adapter
from avfewshot.config import method_choices
from avfewshot.data.load import load_dataset
from avfewshot.errors import UsageError
from avfewshot.methods.base import Features, LabelFeatures, Support
from avfewshot.methods.method import Scorer, find_method
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.supervised.base import Example, load_task

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SECTIONS = {"adapters": "An adapter", "methods": "A few-shot method", "heads": "A head", "datasets": "A data set"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that holds the code of the page, installed beside this one."""
    page = PAGE.read_text(encoding="utf-8")
    entries = ""
    for module, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, flags=re.DOTALL):
        (tmp_path / f"{module}.py").write_text(code)
    for group, line in re.findall(r'project.entry-points."avfewshot.(\w+)"\]\n(.*?)\n```', page, flags=re.DOTALL):
        entries += f"[avfewshot.{group}]\n{line.replace(chr(34), '')}\n"
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_each_takes_less_than_forty_lines():
    page = PAGE.read_text(encoding="utf-8")
    for group, title in SECTIONS.items():
        section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        assert f'"avfewshot.{group}"' in section
        code = "".join(re.findall(r"```\w+\n(.*?)```", section, flags=re.DOTALL))
        assert len(code.splitlines()) < 40, title


def test_an_adapter(package):
    backbone = make_backbone()
    layers = pair_layers(backbone.visual.token_shapes, backbone.audio.token_shapes)
    model = AudioVisualModel(backbone, build_adapter("mean-shift", layers))
    frames, audio = make_inputs(2, 3)

    assert {"dgsct", "mean-shift"} <= set(adapter_names())
    assert torch.equal(model(frames, audio)[0], model(frames, None)[0])
    torch.nn.init.ones_(model.adapters.scale)
    assert not torch.allclose(model(frames, audio)[0], model(frames, None)[0])


def test_a_method(package, tmp_path):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, 8))
    clips = [(str(i), means[i % 3] + 0.1 * rng.normal(size=(2, 8)), rng.normal(size=(2, 8))) for i in range(9)]
    labels = np.eye(3, dtype=bool)[np.arange(9) % 3]
    texts = LabelFeatures(("a", "b", "c"), rng.normal(size=(3, 8)), rng.normal(size=(3, 8)), scales=(10.0, 10.0))

    scorer = find_method("nearest-clip").fit(Support(Features.of(clips), labels), texts)

    assert "nearest-clip" in method_choices()
    new = Features.of([("new", means[1:2], None)])
    assert scorer.logits(new).argmax() == 1
    assert np.array_equal(Scorer.load(scorer.save(tmp_path / "run")).logits(new), scorer.logits(new))


def test_a_head(package):
    task, about = load_task("ave"), {"classes": ["a", "b"]}
    head = task.heads["linear-seconds"].build({"visual": 4, "audio": 3}, about)
    features = {"visual": torch.randn(2, 10, 4), "audio": torch.randn(2, 10, 3)}
    examples = [Example(str(i), Path(), np.full(10, i)) for i in range(2)]

    assert list(task.heads) == ["cmbs", "cmbs-weak", "linear-seconds"]
    assert task.heads["linear-seconds"].needs == {"visual", "audio"}
    assert task.heads["cmbs"].needs == {"places", "audio"}
    optimiser = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        head.loss(features, examples).backward()
        optimiser.step()
    predictions = head.predict(features, examples)
    assert np.mean([(said == example.target).mean() for said, example in zip(predictions, examples, strict=True)]) > 0.7
    assert "linear-seconds" not in load_task("avvp").heads
    assert type(task.heads["cmbs"].build({"places": 4, "audio": 3}, about)).__name__ == "CMBS"


def test_a_data_set(package, tmp_path):
    (tmp_path / "birds.csv").write_text("clip,class,split\none,Robin,train\ntwo,Jay,test\n")
    dataset = load_dataset("birds", tmp_path)

    assert dataset.classes == ("Jay", "Robin")
    samples = [(sample.id, sample.label, sample.split) for sample in dataset.samples]
    assert samples == [("one", 1, "train"), ("two", 0, "test")]
    assert dataset.available()[0].path == tmp_path / "one.mp4"
    with pytest.raises(UsageError, match="a list cannot be given"):
        load_dataset("birds", tmp_path, list_file="list.csv")


def test_what_cannot_be_imported_is_named(package):
    info = package / "mine-1.dist-info" / "entry_points.txt"
    info.write_text("".join(f"[avfewshot.{group}]\nbroken = no_such_module:Thing\n" for group in SECTIONS))

    for kind, find, arguments in (
        ("adapter", build_adapter, ("broken", [])),
        ("method", find_method, ("broken",)),
        ("head", load_task, ("ave",)),
        ("data set", load_dataset, ("broken", package)),
    ):
        with pytest.raises(UsageError, match=f"{kind} 'broken' cannot be imported"):
            find(*arguments)
