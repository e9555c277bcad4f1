"""Cut CLIP's byte-pair encoding down to the toy world's words, for the packaged `tiny` backbone.

The result keeps the format of CLIP's merge file, so that open_clip's own tokenizer reads it: the first merges of CLIP
(common letter groups, for words outside the toy world), the merges that spell each toy word as one token, in CLIP's
order, and at the end merges of our own for toy words that CLIP itself spells with several tokens. A tokenizer with
few entries keeps the embedding tables of both text branches small (CLIP's 49,408 entries are 12 MiB each at width 128).

The first line, which byte-pair readers skip as a comment, lists the toy words: the tokenizer reads them back to tell
which words of a label `tiny` never saw.

    python scripts/make_tiny_bpe.py            # writes avfewshot/encoders/tiny/bpe.txt.gz
    python scripts/make_tiny_bpe.py --check    # fails when the packaged file is not what this script writes
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import open_clip.tokenizer as open_clip_tokenizer

PACKAGED = Path(__file__).resolve().parents[1] / "avfewshot" / "encoders" / "tiny" / "bpe.txt.gz"
FIRST_MERGES = 300
# CLIP uses only this many of the merges in its file.
CLIP_MERGES = 49152 - 256 - 2

Pair = tuple[str, str]


def clip_merges() -> list[Pair]:
    """CLIP's merges in the order of their rank, from the file packaged with open_clip."""
    with gzip.open(open_clip_tokenizer.default_bpe(), "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")[1 : CLIP_MERGES + 1]
    return [tuple(line.split()) for line in lines]  # type: ignore[misc]


def letters(word: str) -> tuple[str, ...]:
    """The symbols that spelling `word` begins with: a letter a byte, the last marked as the end of the word."""
    symbols = [open_clip_tokenizer.bytes_to_unicode()[byte] for byte in word.encode("utf-8")]
    return (*symbols[:-1], symbols[-1] + "</w>")


def spell(symbols: tuple[str, ...], ranks: dict[Pair, int]) -> tuple[tuple[str, ...], list[Pair]]:
    """Merge `symbols` as byte-pair encoding does.

    Args:
        symbols: Letters of a word, the last with its ``</w>``.
        ranks: Rank of each merge; the lowest applies first.

    Returns:
        The symbols left when no merge applies any more, and the merges used.
    """
    used: list[Pair] = []
    while len(symbols) > 1:
        best = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        used.append(best)
        merged: list[str] = []
        position = 0
        while position < len(symbols):
            if symbols[position : position + 2] == best:
                merged.append(best[0] + best[1])
                position += 2
            else:
                merged.append(symbols[position])
                position += 1
        symbols = tuple(merged)
    return symbols, used


def cut(words: Iterable[str], first: int = FIRST_MERGES) -> list[Pair]:
    """Merges for a vocabulary in which every one of `words` is a single token.

    Args:
        words: Texts; they are lower-cased and split into words as CLIP's tokenizer does.
        first: How many of CLIP's first merges to keep whatever the words are.

    Returns:
        Merges in the order of their rank.
    """
    merges = clip_merges()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    kept = set(range(first))
    appended: dict[Pair, None] = {}
    for word in split_words(words):
        symbols, used = spell(letters(word), ranks)
        kept.update(ranks[pair] for pair in used)
        while len(symbols) > 1:  # CLIP has no single token for this word
            appended[(symbols[0], symbols[1])] = None
            symbols = (symbols[0] + symbols[1], *symbols[2:])
    return [merges[rank] for rank in sorted(kept)] + list(appended)


def split_words(texts: Iterable[str]) -> list[str]:
    """Distinct words of `texts` as CLIP's tokenizer splits them, lower-cased and sorted."""
    tokenizer = open_clip_tokenizer.SimpleTokenizer()
    return sorted({word for text in texts for word in tokenizer.pat.findall(tokenizer.clean_fn(text))})


def build(words: Iterable[str]) -> bytes:
    """The gzipped merge file; the same bytes for the same words, whenever and wherever it is made."""
    words = split_words(words)
    merges = cut(words)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    if broken := [word for word in words if len(spell(letters(word), ranks)[0]) > 1]:
        raise ValueError(f"merges of other words get in the way of {broken}")
    # No newline at the end: open_clip's reader would take the empty line for a merge.
    text = f"#version: 0.2 words: {' '.join(words)}\n" + "\n".join(" ".join(pair) for pair in merges)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as stream:
        stream.write(text.encode("utf-8"))
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Write or check the packaged file; returns the exit status."""
    from toy_captions import all_words

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PACKAGED, help="file to write (default: the packaged one)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file differs")
    options = parser.parse_args(arguments)
    data = build(all_words())
    if options.check:
        # Compressors differ between zlib versions; the text must not.
        same = options.output.is_file() and gzip.decompress(options.output.read_bytes()) == gzip.decompress(data)
        print(f"{options.output}: {'up to date' if same else 'differs; run scripts/make_tiny_bpe.py'}")
        return 0 if same else 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(data)
    size = open_clip_tokenizer.SimpleTokenizer(bpe_path=str(options.output)).vocab_size
    print(f"{options.output}: {len(data)} bytes, {size} entries, {len(split_words(all_words()))} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
