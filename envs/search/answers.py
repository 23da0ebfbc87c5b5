"""Exact match as open-domain question answering measures it (Rajpurkar et al., SQuAD, 2016)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def is_exact_match(answer: str, targets: Iterable[str]) -> bool:
    """Whether `answer` equals one of `targets` once both are normalised."""
    normalized = normalize(answer)
    return any(normalized == normalize(target) for target in targets)
