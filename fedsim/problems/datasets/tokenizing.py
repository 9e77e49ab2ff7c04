"""From texts to tokens: by characters, by words, or by a file of the library `tokenizers`.

Of characters and words the vocabulary is that of training texts: 0 is padding, 1 what is not in it, then the most
frequent first, those of one frequency in their order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.data_files import TABLE, reading
from fedsim.core.errors import InputError
from fedsim.core.extras import library

WORD = re.compile(r"\w+|[^\w\s]")
PADDING, UNKNOWN = 0, 1
SPECIAL = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
"""What the token of padding is called in a file that does not say which it is."""
LARGEST = 2**26
"""Bytes that a file of a tokenizer has at most; those of large language models have a third."""


@dataclass(frozen=True)
class Tokens:
    """encode: a text's tokens. vocabulary: how many there are. padding: the one that says nothing. told: what it is."""

    encode: Callable[[str], list[int]]
    vocabulary: int
    padding: int
    told: dict[str, Any]


def pieces(text: str, kind: str) -> list[str]:
    """The characters of a text, or its words and marks."""
    return list(text) if kind == "characters" else WORD.findall(text)


def learned(texts: Iterable[str], kind: str, lowercase: bool, most: int | None) -> Tokens:
    """The tokens of texts. kind: characters or words. most: how many there are at most, with padding and unknown."""

    def cut(text: str) -> list[str]:
        return pieces(text.lower() if lowercase else text, kind)

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(cut(text))
    order = sorted(counts, key=lambda piece: (-counts[piece], piece))
    held = order if most is None else order[: most - 2]
    numbers = {piece: number for number, piece in enumerate(held, start=2)}
    told = {"tokens": kind, "different": len(order), "kept": len(held)}

    def encode(text: str) -> list[int]:
        return [numbers.get(piece, UNKNOWN) for piece in cut(text)]

    return Tokens(encode, len(held) + 2, PADDING, told)


@contextmanager
def _telling() -> Iterator[None]:
    """Around the library, which raises a bare Exception for whatever it does not understand."""
    try:
        yield
    except Exception as error:
        raise ValueError(str(error)) from error


def from_file(path: Path, special: bool, length: int | None) -> Tokens:
    """The tokenizer of a file. special: with what it puts around a text. length: to which it cuts texts; None: nowhere.

    Where no token is one of padding, there is one more than those of the file. InputError: it is no such file.
    """
    option = f"{TABLE}.tokens"
    tokenizers = library("tokenizers", "text", str(path), option)
    if path.is_dir() or path.stat().st_size > LARGEST:
        raise InputError(option, str(path), f"is a folder, or larger than {LARGEST} bytes; name a tokenizer.json")
    with reading(path, "a tokenizer", option), _telling():
        made = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        padding = (made.padding or {}).get("pad_id")
        made.no_padding()
        made.no_truncation()
        if length is not None:
            made.enable_truncation(length)
        ids = made.get_vocab(with_added_tokens=True)
    size = max(ids.values(), default=-1) + 1
    named = next((ids[token] for token in SPECIAL if token in ids), None)
    found = padding if padding is not None and padding < size else named
    told = {"tokens": str(path), "different": len(ids), "kept": len(ids)}

    def encode(text: str) -> list[int]:
        with reading(path, f"a tokenizer of {text[:20]!r}", option), _telling():
            return list(made.encode(text, add_special_tokens=special).ids)

    return Tokens(encode, size + (found is None), size if found is None else found, told)
