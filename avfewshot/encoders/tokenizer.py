"""Texts to token numbers: CLIP's byte-pair encoding, RoBERTa's, and those of other open_clip models.

Every tokenizer is built from files that are already on this machine. A tokenizer that knows no words maps every text to
the same tokens, and every label to the same embedding, without any error: its vocabulary is therefore checked. Files
that are missing, damaged or of another model are a :class:`WeightsError`.
"""

from __future__ import annotations

import gzip
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avfewshot.encoders.lean_imports import library_module
from avfewshot.encoders.weights.locate import combined, file_sha256
from avfewshot.errors import WeightsError

_JSON_CONTEXT = 512  # tokens of a text that a JsonTokenizer keeps
CLAP_CONTEXT = 77  # laion_clap truncates texts to as many tokens, special ones included
_WORDS_MARK = " words: "
_PROBES = ("a dog is barking", "the sound of rain")  # which every vocabulary tells apart


class TextTokenizer(ABC):
    """Turns texts into rows of token numbers, of `vocab_size`; `fingerprint` is a hash of what determines them."""

    vocab_size: int
    fingerprint: str

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokens of `texts`, int64 [N, L], cut to the context length and padded."""

    @abstractmethod
    def is_cut(self, text: str) -> bool:
        """Whether the end of `text` is lost, since the text has more tokens than the context."""

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """Words of `texts` that the model never met in training; empty for tokenizers of open vocabulary."""
        return []

    def _require(self, fits: bool, wanted: int, shown: str | Path, hint: str) -> None:
        """Raise a :class:`WeightsError` where the vocabulary does not fit a text model with `wanted` tokens."""
        if not fits:
            message = f"{shown}: a vocabulary of {self.vocab_size} tokens, but the text model has {wanted}."
            raise WeightsError(message, hint=hint)


class ClipTokenizer(TextTokenizer):
    """CLIP's byte-pair encoding, by open_clip's own class, of a gzipped merge file (open_clip's own when None).

    Its first line may list the words that the model was trained on (``scripts/make_tiny_bpe.py`` writes it), for
    :meth:`unknown_words`. `options` are further arguments of ``SimpleTokenizer``, from a model's ``tokenizer_kwargs``.
    """

    def __init__(
        self, path: str | Path | None = None, context_length: int = 77, options: dict[str, Any] | None = None
    ) -> None:
        library = library_module("open_clip", "tokenizer")
        self.words = _known_words(Path(path)) if path else frozenset()
        path = Path(path or library.default_bpe())
        self._tokenizer = library.SimpleTokenizer(str(path), context_length=context_length, **(options or {}))
        self.vocab_size = self._tokenizer.vocab_size
        self.fingerprint = combined(
            "clip", file_sha256(path), str(context_length), str(sorted((options or {}).items()))
        )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`TextTokenizer.__call__`; padded with zeros to the context length."""
        return self._tokenizer(list(texts))

    def is_cut(self, text: str) -> bool:
        """See :meth:`TextTokenizer.is_cut`; two tokens frame the text."""
        return len(self._tokenizer.encode(text)) + 2 > self._tokenizer.context_length

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """Words of `texts` outside the listed ones, each once, in the order met; punctuation does not count."""
        if not self.words:
            return []
        unknown: dict[str, None] = {}
        for text in texts:
            for word in self._tokenizer.pat.findall(self._tokenizer.clean_fn(text)):
                if word not in self.words and any(letter.isalnum() for letter in word):
                    unknown[word] = None
        return list(unknown)


class _FileTokenizer(TextTokenizer):
    """By the tokenizers library: `_tokenizer`, with truncation and padding switched on."""

    _tokenizer: Any

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`TextTokenizer.__call__`; padded to the longest of `texts`."""
        return torch.tensor([row.ids for row in self._tokenizer.encode_batch(list(texts))], dtype=torch.long)

    def is_cut(self, text: str) -> bool:
        """See :meth:`TextTokenizer.is_cut`."""
        return bool(self._tokenizer.encode(text).overflowing)


class RobertaTokenizer(_FileTokenizer):
    """RoBERTa's byte-level byte-pair encoding, as laion_clap uses it, for a text model with `vocab_size` tokens.

    It is read from ``vocab.json`` and ``merges.txt``, or ``tokenizer.json`` alone, with the tokenizers library:
    transformers' class of the same name may be silently empty where its files are not found. Files that are no such
    tokenizer are a :class:`WeightsError`.
    """

    BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3

    def __init__(self, files: Sequence[str | Path], vocab_size: int = 50265) -> None:
        from tokenizers import Tokenizer

        paths = [Path(path) for path in files]
        shown = " and ".join(str(path) for path in paths)
        try:
            tokenizer = Tokenizer.from_file(str(paths[0])) if len(paths) == 1 else _from_merges(*paths)
            tokenizer.enable_truncation(CLAP_CONTEXT)
            tokenizer.enable_padding(pad_id=self.PAD, pad_token="<pad>")
            self.vocab_size = tokenizer.get_vocab_size()
            special = [tokenizer.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")]
            probe = [tokenizer.encode(text).ids for text in _PROBES]
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise WeightsError(f"{shown}: not RoBERTa's tokenizer ({error}).", hint=_ROBERTA_HINT) from None
        self._require(self.vocab_size == vocab_size, vocab_size, shown, _ROBERTA_HINT)
        plain = [[token for token in ids if token > self.UNKNOWN] for ids in probe]
        framed = all(ids[0] == self.BOS and ids[-1] == self.EOS for ids in probe)
        known = special == [self.BOS, self.PAD, self.EOS, self.UNKNOWN]
        if not (known and framed and all(plain) and plain[0] != plain[1]):
            raise WeightsError(f"{shown}: does not split texts as RoBERTa's tokenizer does.", hint=_ROBERTA_HINT)
        self._tokenizer = tokenizer
        self.fingerprint = combined("roberta", *(file_sha256(path) for path in paths))


class BorrowedTokenizer(TextTokenizer):
    """CLIP's tokens in RoBERTa's frame, for a RoBERTa with *random* weights and `vocab_size` tokens only.

    To such a model one numbering of tokens is as good as another, and this one needs no file from the hub.
    """

    def __init__(self, vocab_size: int = 50265) -> None:
        self._tokenizer = library_module("open_clip", "tokenizer").SimpleTokenizer()
        self.vocab_size = vocab_size
        self.fingerprint = combined("borrowed", str(vocab_size))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`TextTokenizer.__call__`; padded to the longest of `texts` with token 1."""
        first = RobertaTokenizer.UNKNOWN + 1
        rows = []
        for text in texts:
            tokens = [first + token % (self.vocab_size - first) for token in self._tokenizer.encode(text)]
            rows.append([RobertaTokenizer.BOS, *tokens[: CLAP_CONTEXT - 2], RobertaTokenizer.EOS])
        longest = max(map(len, rows), default=0)
        padded = [row + [RobertaTokenizer.PAD] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).reshape(len(rows), longest)

    def is_cut(self, text: str) -> bool:
        """See :meth:`TextTokenizer.is_cut`."""
        return len(self._tokenizer.encode(text)) > CLAP_CONTEXT - 2


class TransformersTokenizer(TextTokenizer):
    """Tokenizer of an open_clip model that uses one of transformers', in a folder, by open_clip's own class.

    `vocab_size` is that of the text model: the tokenizer may have fewer, never more; `mode` and `options` are
    open_clip's ``tokenizer_mode`` and ``tokenizer_kwargs``. A folder without one is a :class:`WeightsError`.
    """

    def __init__(
        self, folder: str | Path, context_length: int, vocab_size: int, mode: str | None = None, options: Any = None
    ) -> None:
        from open_clip.tokenizer import HFTokenizer

        folder = Path(folder)
        hint = "Fetch the files again with `avfs weights fetch`."
        try:
            settings = {"context_length": context_length, "tokenizer_mode": mode, **(options or {})}
            self._tokenizer = HFTokenizer(str(folder), local_files_only=True, **settings)
            probe = self._tokenizer(list(_PROBES))
        except Exception as error:  # transformers raises many kinds
            reason = str(error).strip().partition("\n")[0][:160]
            raise WeightsError(f"{folder}: not a tokenizer that can be loaded ({reason}).", hint=hint) from None
        self._context_length = context_length
        self.vocab_size = len(self._tokenizer.tokenizer)
        differ, nearly = not torch.equal(probe[0], probe[1]), vocab_size * 0.9 <= self.vocab_size <= vocab_size
        self._require(differ and nearly, vocab_size, folder, hint)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self.fingerprint = combined("transformers", str(context_length), *(file_sha256(path) for path in files))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`TextTokenizer.__call__`; padded to the context length."""
        return self._tokenizer(list(texts))

    def is_cut(self, text: str) -> bool:
        """See :meth:`TextTokenizer.is_cut`."""
        return len(self._tokenizer.tokenizer(text)["input_ids"]) > self._context_length


class JsonTokenizer(_FileTokenizer):
    """A tokenizer that one ``tokenizer.json`` describes; `vocab_size` is that of the text model, `pad` pads.

    A file that describes none is a :class:`WeightsError`.
    """

    def __init__(self, path: str | Path, vocab_size: int, pad: int) -> None:
        from tokenizers import Tokenizer

        hint = "Fetch it again with `avfs weights fetch`."
        try:
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.enable_truncation(_JSON_CONTEXT)
            tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))
            one, other = (tokenizer.encode(text).ids for text in _PROBES)
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise WeightsError(f"{path}: not a tokenizer that can be loaded ({error}).", hint=hint) from None
        self.vocab_size = tokenizer.get_vocab_size()
        self._require(one != other and vocab_size * 0.9 <= self.vocab_size <= vocab_size, vocab_size, path, hint)
        self._tokenizer = tokenizer
        self.fingerprint = combined("json", str(pad), str(_JSON_CONTEXT), file_sha256(path))


_ROBERTA_HINT = "Fetch it with `avfs weights fetch`, or give a folder with roberta-base's files with --roberta."


def _known_words(path: Path) -> frozenset[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            first, *merges = stream.read().split("\n")
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such tokenizer file.", hint="Install avfewshot again.") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: is not a gzipped merge file ({error}).") from None
    if "#version" not in first or len(merges) < 1 or len(merges[0].split()) != 2:
        raise WeightsError(f"{path}: is not a merge file in CLIP's format.")
    return frozenset(first.partition(_WORDS_MARK)[2].split())


def _from_merges(vocabulary: Path, merges: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE.from_file(os.fspath(vocabulary), os.fspath(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", RobertaTokenizer.EOS), ("<s>", RobertaTokenizer.BOS), add_prefix_space=False
    )
    known = tokenizer.get_vocab()
    # A special token that the vocabulary lacks would be given a number of its own and hide that the file is wrong.
    if lacking := [token for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if token not in known]:
        raise ValueError(f"no {', '.join(lacking)} in the vocabulary")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    return tokenizer
