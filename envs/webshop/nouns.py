"""The nouns of product titles, which decide whether a purchase is of the right kind.

The official reward takes the tokens that spaCy's `en_core_web_sm` tags NOUN or PROPN. Where that model is not installed
a list of words that are not nouns stands in: of a title, nearly all other words are (model names, materials, things).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

SPACY_MODEL = "en_core_web_sm"
SPACY, APPROXIMATE = "spacy", "approximate"
_TAGS = ("NOUN", "PROPN")
Tagger = Callable[[Sequence[str]], list[tuple[str, ...]]]
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?", re.UNICODE)

_NOT_NOUNS = frozenset((Path(__file__).parent / "data" / "not_nouns.txt").read_text().split())
_ENDINGS = ("ly", "able", "ible", "ful", "less", "ous")


@cache
def has_spacy() -> bool:
    """Whether spaCy and its small English model are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("spacy", SPACY_MODEL))


def make_tagger(method: str) -> Tagger:
    """What finds the lower-cased nouns of titles, in order and with repetitions; `method` is SPACY or APPROXIMATE.

    Raises:
        OSError, ImportError: SPACY where it is not installed.
    """
    if method == APPROXIMATE:
        return lambda titles: [approximate_nouns(title) for title in titles]
    # Heavy, and only the one process that builds the store needs it.
    import spacy

    model = spacy.load(SPACY_MODEL, exclude=["parser", "ner", "lemmatizer", "senter"])
    return lambda titles: [
        tuple(token.text.lower() for token in document if token.pos_ in _TAGS) for document in model.pipe(titles)
    ]


def approximate_nouns(title: str) -> tuple[str, ...]:
    """The words of a title that are neither short, nor numbers, nor in a list of common words of other kinds."""
    words = (word.lower() for word in _WORD.findall(title))
    return tuple(word for word in words if len(word) > 1 and word not in _NOT_NOUNS and not word.endswith(_ENDINGS))
