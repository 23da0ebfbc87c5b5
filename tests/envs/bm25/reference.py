"""BM25 by the definition: every document is scored, in plain Python and numpy scalars, then all are sorted."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from envs.bm25 import analyze


def lucene_length(length: int) -> int:
    """Lucene's SmallFloat: what is left of a length that is stored in one byte."""

    def truncated(value: int) -> int:
        shift = max(0, value.bit_length() - 4)
        return value >> shift << shift

    return length if length < 24 else 24 + truncated(length - 24)


def ranking(documents: list[str], query: str, count: int) -> list[tuple[int, float]]:
    """The best `count` documents with their float32 scores, best first, ties by number."""
    frequencies = [Counter(analyze(document)) for document in documents]
    lengths = [sum(counts.values()) for counts in frequencies]
    num_filled = sum(length > 0 for length in lengths)
    f32, k1, b = np.float32, np.float32(0.9), np.float32(0.4)
    average = f32(sum(lengths) / num_filled)
    scores: dict[int, float] = {}
    for term, occurrences in Counter(analyze(query)).items():
        frequency = sum(term in counts for counts in frequencies)
        idf = f32(math.log(1 + (num_filled - frequency + 0.5) / (frequency + 0.5)))
        weight = f32(occurrences) * idf
        for number, counts in enumerate(frequencies):
            if term in counts:
                length = f32(lucene_length(lengths[number]))
                inverse = f32(1) / (k1 * ((f32(1) - b) + b * length / average))
                score = weight - weight / (f32(1) + f32(counts[term]) * inverse)
                scores[number] = scores.get(number, 0.0) + float(score)
    rounded = [(number, float(f32(score))) for number, score in scores.items()]
    return sorted(rounded, key=lambda entry: (-entry[1], entry[0]))[:count]
