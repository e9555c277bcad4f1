import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from avfewshot.adapters.settings import SETTINGS
from avfewshot.config import NONE, PAPER, TrainingConfig, resolve, settings_of
from avfewshot.errors import UsageError, flatten
from avfewshot.evaluation.tasks import TASKS


def build_config(flags=None, file=None):
    """The training settings of `avfs fewshot` with these flags and this file."""
    flags = {"adapter_kind" if name == "adapter" else name: value for name, value in (flags or {}).items()}
    resolved = resolve("fewshot", {**flags, "config": file}, environ={}).check()
    given = [key for key, source in resolved.sources.items() if source[:7] != "default"]
    return SimpleNamespace(config=resolved.config.training, sources=resolved.sources, given=given)


def faults_of(call) -> list[str]:
    with pytest.raises(UsageError) as caught:
        call()
    return [str(fault) for fault in flatten(caught.value)]


@pytest.mark.parametrize(
    ("task", "factors"), [("ave", (0.2, 0.05, 0.01)), ("ave_cls", (0.2, 0.05, 0.05)), ("llp_cls", (0.2, 0.05, 0.05))]
)
def test_the_papers_settings_are_the_default_of_each_task(task, factors):
    config = build_config({"task": task}).config
    assert (config.alpha, config.beta, config.gamma) == factors
    assert (config.optimizer, config.lr, config.batch_size) == ("adam", 3e-4, 2)


def test_flags_beat_the_file_which_beats_the_tasks_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("task: ave\nlr: 1e-3\nbatch-size: 8\nseeds: [4, 5]\ntemporal: off\ncache_size: 500MB\n")
    built = build_config({"batch_size": "4", "channel": "false", "shots": None}, file)
    config, sources = built.config, built.sources
    assert (config.batch_size, config.lr, config.gamma, config.shots) == (4, 1e-3, 0.01, 16)
    assert (config.seeds, config.temporal, config.channel, config.cache_size) == ((4, 5), False, False, 500_000_000)
    told = [sources[name] for name in ("batch_size", "lr", "gamma", "shots")]
    assert told == ["--batch-size", str(file), "default of ave", "default"]
    assert "batch_size" in built.given
    assert "gamma" not in built.given
    assert build_config({"task": "ave", "gamma": "0.5"}).config.gamma == 0.5
    assert build_config({"task": "llp_cls"}, file).config.gamma == 0.05  # with the task the defaults change


def test_everything_wrong_is_reported_at_once_with_the_valid_choices(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("shot: 4\nlr: fast\nsampler: random\nepochs: 2.5\nspatial: 3\n7: x\n")
    faults = faults_of(lambda: build_config({"shots": "0", "seeds": "1,1", "micro_batch": "9", "warmup": "0.9"}, file))
    assert len(faults) == 10
    for part in (
        f"{file}: shot is unknown. Did you mean 'shots'? Valid: ",
        f"{file}: lr: a number greater than 0 is needed, not 'fast'.",
        f"{file}: sampler: 'random' is not one of nested, first-k.",
        f"{file}: epochs: a whole number of at least 1",
        f"{file}: spatial: true or false",
        f"{file}: 7 is unknown.",
        "--shots: a whole number of at least 1 is needed, not '0'.",
        "--seeds: different whole numbers",
        "--warmup: a number of at least 0 and at most 0.5",
        "micro_batch is larger than batch_size.",
    ):
        assert any(fault.startswith(part) for fault in faults), part


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a2v": False, "v2a": False}, "the adapter would do nothing"),
        ({"adapter": "none", "projector": "none"}, "nothing to train"),
        ({"micro_batch": 3}, "larger than batch_size"),
        ({"objective": "contrastive", "batch_size": 1}, "at least 2"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, message):
    for call in (lambda: TrainingConfig(**values), lambda: build_config(values)):
        (fault,) = faults_of(call)
        assert message in fault


def test_a_wrong_value_is_not_blamed_for_a_contradiction_as_well():
    (fault,) = faults_of(lambda: build_config({"batch_size": "many", "micro_batch": "4"}))
    assert fault.startswith("--batch-size")
    assert TrainingConfig(adapter="none", a2v=False, v2a=False).projector == "residual"  # projectors alone are valid


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("lr", value) for value in (0, -1e-4, float("nan"), float("inf"), True, None, [1], 10**400, "1e999")],
        *[("seeds", value) for value in ((), "", "1,,2", -1, 2**32, [1.0], [True], "one")],
        *[("cache_size", value) for value in (-1, "20 apples", 1.5, True, "")],
        *[("batch_size", value) for value in (0, "auto", 2.0, True)],
        *[("channel", value) for value in (1, "maybe", None)],
        *[("task", value) for value in ("AVE", None, ["ave"])],
        ("adapter", "lora"),
        ("step_factor", 1.5),
    ],
)
def test_values_of_a_wrong_type_or_range_are_refused(name, value):
    (fault,) = faults_of(lambda: TrainingConfig(**{name: value}))
    assert fault.startswith(f"{name}: ")
    if value is not None and value != ():  # an option that may be repeated is () where it is not given
        (fault,) = faults_of(lambda: build_config({name: value}))
        flag = {"adapter": "adapter-kind"}.get(name, name).replace("_", "-")
        assert fault.startswith(f"--{flag}: ")


def test_a_configuration_survives_json_and_yaml_and_a_damaged_one_is_refused(tmp_path):
    config = TrainingConfig(task="ave", seeds=(3, 1), lr=1e-5, gamma=1, adapter="none", cache_size=7, micro_batch=1)
    assert isinstance(config.gamma, float)
    assert TrainingConfig.from_dict(config.to_dict()) == config
    assert json.loads(json.dumps(config.to_dict()))["seeds"] == [3, 1]
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    assert build_config(file=file).config == config
    first, *_ = faults_of(lambda: TrainingConfig.from_dict({"shots": "4", "x": 1}, where="config.json"))
    assert first.startswith("config.json: shots: ")


def test_every_default_is_valid_as_shown():
    for task in TASKS:
        config = build_config({"task": task}).config
        for setting in settings_of(TrainingConfig, by_field=True).values():
            value = getattr(config, setting.name)
            if value is not None or setting.unset == NONE:  # else it is left out, and shown with words
                assert setting.parse(setting.show(value), from_text=True) == value, setting.name
            assert setting.help.endswith("."), setting.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"shots: 1\nshots: 2\n", "given twice: shots"),
        (b"batch-size: 1\nbatch_size: 2\n", "batch_size is given twice"),
        (b"- shots\n", "must hold"),
        (b"shots: [1\n", "is not valid YAML"),
        (b"shots: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (b"task: \xff\n", "is not UTF-8"),
        (None, "there is no such file"),
        (b"\xef\xbb\xbf# nothing yet\n", None),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error_and_an_empty_one_changes_nothing(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    if message is None:
        assert build_config({"shots": 1}, file).config == TrainingConfig(shots=1)
        return
    (fault,) = faults_of(lambda: build_config({}, file))
    assert fault.startswith(str(file))
    assert message in fault


def test_the_adapters_settings_are_those_that_it_knows():
    for kind, settings in SETTINGS.items():
        own, known = (
            TrainingConfig(adapter=kind).adapter_settings,
            {field.name for field in dataclasses.fields(settings)},
        )
        assert {*own, "hidden", "reduction"} >= known >= set(own)
        assert settings.from_mapping(own) == settings()


def test_the_choices_are_those_of_the_modules_that_act_on_them():
    from avfewshot.adapters.registry import adapter_names
    from avfewshot.adapters.settings import OUTPUTS
    from avfewshot.inference.devices import PRECISIONS
    from avfewshot.media.clip_cache import DEFAULT_MAX_BYTES
    from avfewshot.models.fusion import FUSIONS, MATCHINGS, POOLS
    from avfewshot.models.losses import OBJECTIVES
    from avfewshot.models.projectors import PROJECTORS

    kinds = settings_of(TrainingConfig, by_field=True)
    for name, choices in {
        "sampler": ("nested", "first-k"),
        "adapter": (*adapter_names(), "none"),
        "output": OUTPUTS,
        "projector": (*PROJECTORS, "none"),
        "objective": OBJECTIVES,
        "matching": MATCHINGS,
        "fusion": (*FUSIONS, "auto"),
        "pool": POOLS,
        "precision": ("auto", *PRECISIONS),
        "task": tuple(TASKS),
    }.items():
        assert tuple(kinds[name].metavar.split("|")) == choices, name
    assert TrainingConfig().cache_size == DEFAULT_MAX_BYTES


def test_the_recipe_of_the_paper_sets_defaults_that_flags_come_before():
    built = build_config({"task": "ave", "recipe": "paper", "blend": "0.5"})
    config = built.config
    assert (config.objective, config.pool, config.projector, config.gamma) == ("contrastive", "mean", "mlp", 0.01)
    assert config.blend == 0.5
    assert built.sources["pool"] == "default of recipe paper"
    assert TrainingConfig(recipe="paper", pool="event").pool == "event"
    assert TrainingConfig().pool == "event"


def test_the_table_of_recipes_in_the_docs_is_the_difference_of_the_two():
    page = (Path(__file__).parents[1] / "docs" / "fewshot.md").read_text(encoding="utf-8")
    ours, paper, known = TrainingConfig(), TrainingConfig(recipe="paper"), settings_of(TrainingConfig, by_field=True)
    for name, setting in known.items():
        if name != "recipe" and getattr(ours, name) != getattr(paper, name):
            values = (setting.show(getattr(config, name)) for config in (ours, paper))
            assert f"| `{name}` | {' | '.join(values)} | " in page
    table = page.split("## The paper's recipe")[1].split("##")[0]
    assert table.count("\n| `") == len(PAPER)
