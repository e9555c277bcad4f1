"""Text branches, tokenizers and the features of labels."""

import gzip
import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
from toy_captions import all_words
from weights_support import ROBERTA, word_tokenizer, write_roberta

from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.text import OpenClipTextBranch, RobertaTextBranch, _bytes, label_features, lost_texts
from avfewshot.encoders.tokenizer import BorrowedTokenizer, ClipTokenizer, RobertaTokenizer, TransformersTokenizer
from avfewshot.errors import WeightsError
from avfewshot.io import cache_dir
from avfewshot.toyworld.vocabulary import COMPOSITIONS

REPOSITORY = Path(__file__).resolve().parents[1]
TEXTS = ["a dog", "the sound of rain on a tin roof at night", "train whistling", "noise"]


@pytest.fixture(scope="module")
def tiny():
    return build_backbone("tiny", weights="random", seed=3)


@pytest.fixture(scope="module")
def roberta_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta")
    write_roberta(folder)
    return [folder / "vocab.json", folder / "merges.txt"]


@pytest.fixture(scope="module")
def bpe_script():
    spec = importlib.util.spec_from_file_location("make_tiny_bpe", REPOSITORY / "scripts" / "make_tiny_bpe.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def roberta_branch(tokenizer) -> RobertaTextBranch:
    from transformers import RobertaConfig, RobertaModel

    fields = {name: value for name, value in ROBERTA.items() if name != "type"}
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig(**fields, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return RobertaTextBranch(tokenizer, 8, "test", model=model, projection=torch.nn.Linear(16, 8))


# Text branches


def test_towers_that_read_the_padding_are_given_it():
    import open_clip

    torch.manual_seed(0)
    for options in ({"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}):
        tower = open_clip.transformer.TextTransformer(width=16, heads=2, layers=2, output_dim=8, **options).eval()
        branch = OpenClipTextBranch(tower, ClipTokenizer(), 8, "test")
        with torch.no_grad():
            expected = torch.nn.functional.normalize(tower(open_clip.tokenize(TEXTS)), dim=-1)
        assert torch.allclose(branch.encode(TEXTS), expected, atol=1e-6), options


def test_roberta_texts_are_those_of_the_model_on_77_padded_tokens(roberta_files):
    tokenizer = RobertaTokenizer(roberta_files)
    branch = roberta_branch(tokenizer)
    rows = [row + [1] * (77 - len(row)) for row in (tokenizer([text])[0].tolist() for text in TEXTS)]
    tokens = torch.tensor(rows)
    with torch.no_grad():
        pooled = branch.model(input_ids=tokens, attention_mask=(tokens != 1).long()).pooler_output
        expected = torch.nn.functional.normalize(branch.projection(pooled), dim=-1)
    assert torch.allclose(branch.encode(TEXTS), expected, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["visual_text", "audio_text"])
def test_order_batches_and_autocast_do_not_matter(tiny, side):
    branch = getattr(tiny, side)
    together = branch.encode(TEXTS)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    assert torch.allclose(together.norm(dim=-1), torch.ones(4), atol=1e-5)
    assert torch.allclose(branch.encode(TEXTS, batch_size=2), together, atol=1e-6)
    assert torch.allclose(branch.encode(TEXTS[::-1]), together.flip(0), atol=1e-6)
    assert branch.encode([]).shape == (0, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(branch.encode(TEXTS), together)


# Tokenizers


def test_every_toy_word_is_one_token_and_others_are_named_once_in_order(tiny, roberta_files):
    tokenizer = tiny.visual_text.tokenizer
    words = list(all_words())
    lengths = (tokenizer(words) != 0).sum(1).tolist()
    assert lengths == [3] * len(words)  # start, word, end
    assert tokenizer.unknown_words(composition.name for composition in COMPOSITIONS) == []
    texts = ["a Zebra galloping, loudly", "the zebra's 3 dogs -- !?", "dog barking"]
    assert tiny.audio_text.unknown_words(texts) == ["zebra", "galloping", "loudly", "'s", "3", "dogs"]
    for open_vocabulary in (ClipTokenizer(), RobertaTokenizer(roberta_files)):
        assert open_vocabulary.unknown_words(["zebra"]) == []


def test_the_packaged_merge_file_is_what_the_script_writes(bpe_script):
    assert bpe_script.main(["--check"]) == 0
    data = bpe_script.build(all_words())
    assert data == bpe_script.build(reversed(all_words()))
    assert data[4:8] == b"\0\0\0\0"  # no time in the header: the bytes are reproducible
    assert gzip.decompress(data) == gzip.decompress(bpe_script.PACKAGED.read_bytes())


def test_a_cut_vocabulary_spells_listed_words_as_clip_does_or_as_one_token(bpe_script, tmp_path):
    words = ["theremin", "Bell", "xylophone", "zebra's", "naïve"]
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(bpe_script.build(words))
    cut, whole = ClipTokenizer(path), ClipTokenizer()
    assert cut.vocab_size < 900 < whole.vocab_size
    for word in ("theremin", "bell", "xylophone", "zebra", "naïve"):
        assert (cut([word]) != 0).sum() == 3
    assert cut.words == {"theremin", "bell", "xylophone", "zebra", "'s", "naïve"}
    assert cut.unknown_words(["a quiet theremin"]) == ["a", "quiet"]


def test_files_that_are_no_merge_files_are_told(tmp_path):
    cases = {"a": b"text", "b": gzip.compress(b"hello\nworld\n"), "c": gzip.compress(b"#version: 0.2\na b\n")[:-9]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{tmp_path / name}: is not a"):
            ClipTokenizer(tmp_path / name)
    with pytest.raises(WeightsError, match="no such tokenizer file"):
        ClipTokenizer(tmp_path / "absent")


def test_roberta_tokens_are_those_of_transformers_also_from_one_tokenizer_file(roberta_files, tmp_path):
    from transformers import RobertaTokenizer as Reference

    reference = Reference.from_pretrained(str(roberta_files[0].parent))
    texts = ["a dog bar", "rain, rain!  A dog's   day", "naïve – 東京 42", "", " <pad> </s>", "dog " * 200]
    theirs = reference(texts, padding="longest", truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    reference.save_pretrained(str(tmp_path))
    for files in (roberta_files, [tmp_path / "tokenizer.json"]):
        assert torch.equal(RobertaTokenizer(files)(texts), theirs)


def test_empty_and_damaged_roberta_files_are_refused(roberta_files, tmp_path):
    vocabulary = json.loads(roberta_files[0].read_text())
    cases = {
        "text": "{not json",
        "short": json.dumps(dict(list(vocabulary.items())[:400])),
        "shifted": json.dumps({token: (number + 1) % 50265 for token, number in vocabulary.items()}),
        "unframed": json.dumps({{"<s>": "[CLS]"}.get(token, token): number for token, number in vocabulary.items()}),
    }
    for name, content in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(WeightsError, match=str(tmp_path / name)):
            RobertaTokenizer([tmp_path / name, roberta_files[1]])
    with pytest.raises(WeightsError):
        RobertaTokenizer([tmp_path / "absent.json", roberta_files[1]])
    # What transformers makes of a folder without files: a few special tokens, and the same tokens for every text.
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(special)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = [tmp_path / "vocab.json", tmp_path / "merges.txt"]
    with pytest.raises(WeightsError, match=r"a vocabulary of 5 tokens, but the text model has 50265.*--roberta"):
        RobertaTokenizer(files)
    with pytest.raises(WeightsError, match="does not split texts"):
        RobertaTokenizer(files, vocab_size=5)  # of the size asked for, but without any word


def test_the_borrowed_tokenizer_stays_inside_the_vocabulary():
    tokenizer = BorrowedTokenizer(300)
    rows = tokenizer([*TEXTS, "dog " * 200])
    assert rows.shape == (5, 77)
    assert int(rows.max()) < 300
    assert rows[0].tolist()[:1] == [0]
    assert len({tuple(row.tolist()) for row in rows}) == 5


def test_tokenizers_of_transformers_serve_open_clip_models(tmp_path):
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "is", "barking", "the", "sound", "of", "rain"]
    tokenizer = word_tokenizer(words, "[UNK]", ("[CLS]", "[SEP]"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(str(tmp_path))
    rows = TransformersTokenizer(tmp_path, context_length=8, vocab_size=12)(["a dog", "rain"])
    assert rows.tolist() == [[2, 4, 5, 3, 0, 0, 0, 0], [2, 11, 3, 0, 0, 0, 0, 0]]
    with pytest.raises(WeightsError, match="a vocabulary of 12 tokens, but the text model has 30522"):
        TransformersTokenizer(tmp_path, context_length=8, vocab_size=30522)
    with pytest.raises(WeightsError, match="not a tokenizer that can be loaded"):
        TransformersTokenizer(tmp_path / "absent", context_length=8, vocab_size=12)


# Features of labels


@pytest.fixture
def branch(tiny, monkeypatch):
    """A text branch that keeps nothing yet and counts the texts that it is asked to encode."""
    branch = tiny.visual_text
    encode = branch.encode

    def counting(texts, batch_size=256):
        branch.asked += len(texts)
        return encode(texts, batch_size)

    monkeypatch.setattr(branch, "asked", 0, raising=False)
    monkeypatch.setattr(branch, "encode", counting)
    branch.__dict__.pop("_label_features", None)
    return branch


def test_features_are_means_on_the_sphere(tiny):
    templates = ["a photo of a {}", "{}", "the {} of {label}"]
    features = label_features(tiny.visual_text, ["dog {x}", "cat"], templates)
    singles = tiny.visual_text.encode(["a photo of a cat", "cat", "the cat of {label}"])
    expected = torch.nn.functional.normalize(singles.double().mean(0), dim=0)
    assert torch.allclose(features[1].double(), expected, atol=1e-6)
    assert features.shape == (2, 128)
    assert label_features(tiny.visual_text, [], templates).shape == (0, 128)
    with pytest.raises(ValueError, match="template"):
        label_features(tiny.visual_text, ["dog"], [])


def test_a_thousand_labels_are_encoded_once(branch):
    labels = [f"label {number}" for number in range(1000)]
    first = label_features(branch, labels, ["a {}", "{}"])
    first_copy = first.clone()
    first.zero_()  # what a caller does to its own leaves the cache alone
    assert torch.equal(label_features(branch, labels, ["a {}", "{}"]), first_copy)
    branch.__dict__.pop("_label_features")  # as in a new process: from disk
    assert torch.equal(label_features(branch, labels, ["a {}", "{}"]), first_copy)
    assert branch.asked == 2000


def test_what_matters_for_the_result_is_in_the_key(tiny, branch, monkeypatch):
    for labels, template in ((["dog", "cat"], "a {}"), (["cat", "dog"], "a {}"), (["dog", "cat"], "the {}")):
        label_features(branch, labels, [template])
    assert branch.asked == 6
    other = build_backbone("tiny", weights="random", seed=4)
    assert len({other.visual_text.fingerprint, tiny.audio_text.fingerprint, branch.fingerprint}) == 3
    monkeypatch.setattr(branch, "fingerprint", "other weights")
    label_features(branch, ["dog", "cat"], ["a {}"])
    assert branch.asked == 8


def test_a_damaged_cache_file_is_computed_again(branch):
    expected = label_features(branch, ["dog", "cat"], ["a {}"])
    (path,) = cache_dir("labels").glob("*.safetensors")
    whole = path.read_bytes()
    swapped, zeros = _bytes("other", expected.flip(0).contiguous()), _bytes(path.stem, torch.zeros(2, 128))
    for number, damaged in enumerate((whole[:-100], b"", b"hello" * 100, zeros, swapped)):
        path.write_bytes(damaged)
        branch.__dict__.pop("_label_features")
        assert torch.equal(label_features(branch, ["dog", "cat"], ["a {}"]), expected)
        assert branch.asked == 4 + 2 * number
        assert path.read_bytes() == whole  # written anew


def test_a_cache_that_cannot_be_written_costs_only_time(tiny, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AVFS_CACHE", str(tmp_path / "file"))
    assert label_features(tiny.visual_text, ["snake"], ["one {}"]).shape == (1, 128)


def test_building_says_nothing(caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        build_backbone("tiny", weights="random")
    assert caplog.records == []
    assert [str(warning.message) for warning in recwarn if "avfewshot" in str(warning.filename)] == []


# Texts that do not reach the encoder whole


def test_labels_that_are_cut_or_become_the_same_text_are_named(tiny):
    long = "barking in the kitchen of a house near a table and a chair and a lamp and a door and a shelf"
    names, wordings = ("dog", "cat", "rain"), (f"{long} of a dog", f"{long} of a cat", "falling rain")
    cut, same = lost_texts(tiny.visual_text, names, wordings, ("a photo of {}", "{}"))
    assert "dog, cat" in cut
    assert "rain" not in cut
    assert "dog, cat" in same
    assert lost_texts(tiny.visual_text, names, ("a dog", "a cat", "falling rain"), ("a photo of {}", "{}")) == []
    # Those that differ in a short template only are cut but not the same.
    template = f"a table{' and a chair' * 5} and {{}}"
    (cut,) = lost_texts(tiny.visual_text, names[:2], names[:2], ("{}", template))
    assert "dog, cat" in cut
    assert "Too long" in cut
    # Those that differ in what the tokenizer ignores are.
    (same,) = lost_texts(tiny.audio_text, ("dog", "Dog"), ("a dog", "A  Dog"), ("{}",))
    assert "dog, Dog" in same


def test_every_tokenizer_tells_where_its_context_ends(roberta_files):
    words = ["dog"] * 200
    for tokenizer in (ClipTokenizer(), RobertaTokenizer(roberta_files), BorrowedTokenizer()):
        cut = [count for count in range(1, 200) if tokenizer.is_cut(" ".join(words[:count]))]
        whole = " ".join(words[: cut[0] - 1])
        assert cut == list(range(cut[0], 200))
        assert torch.equal(tokenizer([whole + " dog"]), tokenizer([whole + " dog dog"])), type(tokenizer)
        assert not torch.equal(tokenizer([whole[: -len(" dog")]]), tokenizer([whole])), type(tokenizer)
