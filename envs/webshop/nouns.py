"""The nouns of product titles, which decide whether a purchase is of the right kind.

The official reward takes the tokens that spaCy's `en_core_web_sm` tags NOUN or PROPN. Where that model is not installed
lists of words that are not nouns stand in. In a title with capitals the model tags nearly every word PROPN, adjectives
too (`New Classic Loafers`), so only words like `for`, `fully` and `included` are taken out there.
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
_ENDINGS = ("able", "ible", "ful", "less", "ous")
_NEVER_NOUNS = frozenset((Path(__file__).parent / "data" / "never_nouns.txt").read_text().split())


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
    """The words of a title that are neither single letters, nor numbers, nor known to be of another kind."""
    return tuple(word.lower() for word in _WORD.findall(title) if len(word) > 1 and not _is_of_another_kind(word))


def _is_of_another_kind(word: str) -> bool:
    lowered = word.lower()
    if lowered in _NEVER_NOUNS or (len(word) > 5 and lowered.endswith("ly")):
        return True
    is_adjective = lowered in _NOT_NOUNS or (len(word) > 6 and lowered.endswith(_ENDINGS))
    return is_adjective and not word[0].isupper()
