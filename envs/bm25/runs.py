"""The intermediate files of a build: runs, each the inverted index of some of the documents, one after the other.

Every file is only appended to; the state names how much of each counts. So what a killed build wrote after its last
state is cut off, and the rest is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

MAX_FREQUENCY = 65535
_STATE = "state.json"
_TYPES = {
    "run_terms": np.int32,  # the terms of a run, ascending, run after run
    "run_counts": np.int32,  # and how many postings each has in that run
    "run_documents": np.int32,
    "run_frequencies": np.uint16,
    "run_lengths": np.int32,  # [documents] number of tokens
    "vocabulary": np.uint8,  # terms in the order of their numbers, each followed by a line feed
}


@dataclass(frozen=True)
class State:
    """What is on disk. `sizes` are the elements of each file, `run_ends` the elements of run_terms after each run."""

    source: str
    num_terms: int
    run_ends: tuple[int, ...]
    sizes: Mapping[str, int]

    @property
    def num_documents(self) -> int:
        return self.sizes["run_lengths"]


class RunFiles:
    """The runs in `directory`: those of a killed build of the same source, else none."""

    def __init__(self, directory: Path, source: str) -> None:
        self.directory = directory
        self.state = self._read_state(source)
        for path in directory.iterdir():
            if path.name != _STATE and path.suffix != ".bin":
                path.unlink()  # of a merge that was killed
        for name, kind in _TYPES.items():
            self._path(name).touch()
            os.truncate(self._path(name), self.state.sizes[name] * np.dtype(kind).itemsize)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.bin"

    def _read_state(self, source: str) -> State:
        empty = State(source, 0, (), dict.fromkeys(_TYPES, 0))
        try:
            state = State(**json.loads((self.directory / _STATE).read_text()))
        except FileNotFoundError:
            return empty
        is_whole = all(
            self._path(name).is_file() and self._path(name).stat().st_size >= size * np.dtype(_TYPES[name]).itemsize
            for name, size in state.sizes.items()
        )
        return state if source and state.source == source and is_whole else empty

    def read(self, name: str) -> NDArray:
        """One file's elements, mapped."""
        size = self.state.sizes[name]
        return np.memmap(self._path(name), _TYPES[name], "r", shape=(size,)) if size else np.empty(0, _TYPES[name])

    def terms(self) -> list[str]:
        """All terms so far, in the order of their numbers."""
        return self.read("vocabulary").tobytes().decode().split("\n")[:-1]

    def append(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], terms: Mapping[str, int]) -> None:
        """Add a run.

        Args:
            tokens: [tokens] term numbers, document after document.
            lengths: [documents] how many of them each document has.
            terms: all terms by now, in the order of their numbers.
        """
        counts, documents, frequencies = _invert(tokens, lengths, self.state.num_documents, len(terms))
        present = np.flatnonzero(counts)
        new_terms = "".join(f"{term}\n" for term in islice(terms, self.state.num_terms, None)).encode()
        parts = {
            "run_terms": present.astype(np.int32),
            "run_counts": counts[present].astype(np.int32),
            "run_documents": documents,
            "run_frequencies": frequencies,
            "run_lengths": lengths,
            "vocabulary": np.frombuffer(new_terms, np.uint8),
        }
        for name, part in parts.items():
            with self._path(name).open("ab") as file:
                file.write(part.tobytes())
        sizes = {name: self.state.sizes[name] + len(part) for name, part in parts.items()}
        self.state = State(self.state.source, len(terms), (*self.state.run_ends, sizes["run_terms"]), sizes)
        temporary = self.directory / f"{_STATE}.new"
        temporary.write_text(json.dumps(asdict(self.state)))
        temporary.rename(self.directory / _STATE)

    def remove(self) -> None:
        """Delete the runs."""
        for name in _TYPES:
            self._path(name).unlink()
        (self.directory / _STATE).unlink(missing_ok=True)


@numba.njit(cache=True)
def _invert(tokens, lengths, first_document, num_terms):
    """The postings of a run, term after term: (postings per term, documents, frequencies)."""
    counts = np.zeros(num_terms, np.int64)
    latest = np.full(num_terms, -1, np.int64)  # the document in which the term was last met
    position = 0
    for document in range(len(lengths)):
        for token in tokens[position : position + lengths[document]]:
            if latest[token] != document:
                latest[token] = document
                counts[token] += 1
        position += lengths[document]
    ends = np.cumsum(counts)
    cursors = ends - counts - 1  # where the term's latest posting stands
    documents = np.empty(ends[-1] if num_terms else 0, np.int32)
    frequencies = np.zeros(len(documents), np.uint16)
    latest[:] = -1
    position = 0
    for document in range(len(lengths)):
        for token in tokens[position : position + lengths[document]]:
            if latest[token] != document:
                latest[token] = document
                cursors[token] += 1
                documents[cursors[token]] = first_document + document
            if frequencies[cursors[token]] < MAX_FREQUENCY:
                frequencies[cursors[token]] += 1
        position += lengths[document]
    return counts, documents, frequencies
