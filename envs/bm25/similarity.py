"""BM25 as Lucene computes it, in the same float32 operations.

    score(term, document) = w - w / (1 + tf / norm),  w = count in the query * idf
    idf = ln(1 + (N - df + 0.5) / (df + 0.5))
    norm = k1 * (1 - b + b * length / average length)

N counts the documents that have at least one term. A document's length is kept in one byte (Lucene's
SmallFloat.intToByte4), so lengths above 40 are rounded down to four significant bits. The score of a document is the
sum over the query's terms in float64, rounded to float32. float32 numbers of about one size add up in float64 without
an error, so the order of the terms does not matter.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

K1 = np.float32(0.9)
B = np.float32(0.4)


def _decoded_lengths() -> NDArray[np.int64]:
    """The length that each byte stands for: 0 to 40 exactly, then steps of 1/8 of a power of two."""
    num_exact = 24  # what is free of 256 codes when the largest int is coded in 4 significant bits

    def decode(code: int) -> int:
        exponent, mantissa = divmod(code, 8)
        return mantissa if exponent == 0 else (mantissa + 8) << (exponent - 1)

    return np.array([code if code < num_exact else num_exact + decode(code - num_exact) for code in range(256)])


DECODED_LENGTHS = _decoded_lengths()


def encode_lengths(lengths: NDArray[np.integer]) -> NDArray[np.uint8]:
    """[documents] numbers of terms to their bytes: the largest code whose length is not above the true one."""
    return (np.searchsorted(DECODED_LENGTHS, lengths, side="right") - 1).astype(np.uint8)


def inverse_norms(num_tokens: int, num_documents: int) -> NDArray[np.float32]:
    """[256] 1 / norm of every length code; `num_documents` are those that are not empty."""
    average = np.float32(num_tokens / max(1, num_documents))
    lengths = DECODED_LENGTHS.astype(np.float32)
    one = np.float32(1)
    return one / (K1 * ((one - B) + B * lengths / max(average, np.float32(1e-9))))


def inverse_document_frequency(document_frequency: int, num_documents: int) -> np.float32:
    """idf of a term that occurs in `document_frequency` of `num_documents` documents."""
    return np.float32(math.log(1 + (num_documents - document_frequency + 0.5) / (document_frequency + 0.5)))
