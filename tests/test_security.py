"""docs/security.md says what the code does: its figures are those of the code, its tests are there."""

import re
from pathlib import Path

import pytest

from avfewshot import io, labels, safe_yaml
from avfewshot.data import rows
from avfewshot.encoders.weights import load
from avfewshot.errors import DataError
from avfewshot.media import clip_cache, container, decoders, discover, remote

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
LIMITS = {
    "| memory to decode a file | 1.2 GB": decoders.MEMORY == 1.2e9,
    "| time to decode a file | 60 s": decoders.TIMEOUT == 60,
    f"up to {container.DECODED_PIXELS:,} pixels, held up to {container.MAX_PIXELS:,}": True,
    f"| sampling rates | {container.RATES[0]:,} to {container.RATES[-1]:,} Hz": True,
    "| a fetched file | 2 GB": remote.MAX_BYTES == 2e9,
    "the whole download ten times as long": remote.PATIENCE == 10,
    "| all fetched files | 20 GB": remote.CACHE_BYTES == 20e9,
    f"| YAML | 1 MiB, {safe_yaml.DEPTH} levels, {safe_yaml.NODES:,} values": True,
    f"| label file | {labels.MAX_BYTES >> 20} MiB": True,
    f"| label, wording | {labels.MAX_LETTERS:,} letters": True,
    f"| JSON of a run or an adapter | {io._MAX_JSON >> 20} MiB": True,
    f"| annotation file | {rows._MOST_BYTES >> 20} MiB": True,
    f"| header of a safetensors file | {load._MAX_HEADER >> 20} MiB": True,
    f"| names by which links lead to one folder | {discover._MOST_NAMES};": True,
    "| clip cache | 20 GB": clip_cache.DEFAULT_MAX_BYTES == 20e9,
}


def test_limits_are_those_of_the_code():
    assert [limit for limit in LIMITS if limit not in DOCUMENT] == []
    assert [limit for limit, holds in LIMITS.items() if not holds] == []


def test_the_tests_that_are_named_exist():
    named = re.findall(r"`(?:tests/)?(test_\w+\.py)(?:::(\w+))?`", DOCUMENT)
    assert len(named) > 20
    for file, name in named:
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        assert f"def {name}(" in text if name else text, (file, name)


def test_a_config_beyond_the_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_MAX_JSON", 100)
    path = tmp_path / "config.json"
    path.write_text("{" + " " * 98 + "}")
    assert io.read_json(path) == {}
    path.write_text("{" + " " * 99 + "}")
    with pytest.raises(DataError, match="is damaged"):
        io.read_json(path)
