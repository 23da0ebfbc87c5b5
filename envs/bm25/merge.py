"""The last stage of a build: runs become the files of an index."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from envs.bm25.files import ARRAYS, FORMAT_VERSION, Header, array_path, write_header
from envs.bm25.runs import RunFiles
from envs.bm25.scorer import WINDOW, Postings, fill_window_row
from envs.bm25.similarity import encode_lengths, inverse_norms

TERMS_PER_STEP = 1 << 16
# A term gets a row in the window tables (8 bytes a window) when it has this many postings (6 bytes each) a window.
POSTINGS_PER_WINDOW = 4


def merge(runs: RunFiles, terms: list[str], *, show_progress: bool) -> None:
    """Write the arrays and the header of the index into the runs' directory."""
    directory = runs.directory
    lengths = runs.read("run_lengths")
    _write_terms(directory, terms)
    _save(directory, "length_codes", encode_lengths(lengths))
    run_terms, run_counts = runs.read("run_terms"), runs.read("run_counts")
    counts = _total_counts(run_terms, run_counts, len(terms))
    ends = np.cumsum(counts)
    _save(directory, "posting_ends", ends)
    num_postings = int(counts.sum())
    documents, frequencies = (_create(directory, name, (num_postings,)) for name in ("documents", "frequencies"))
    run_ends = np.array(runs.state.run_ends, np.int64)
    cursors = np.array([0, *run_ends[:-1]], np.int64)  # the next element of each run
    positions = np.array([run_counts[:end].sum(dtype=np.int64) for end in cursors], np.int64)  # and its first posting
    written = 0
    for first in tqdm(range(0, len(terms), TERMS_PER_STEP), "merging", disable=not show_progress):
        written = _merge_terms(
            *(first, min(first + TERMS_PER_STEP, len(terms)), run_ends, cursors, positions),
            *(run_terms, run_counts, runs.read("run_documents"), runs.read("run_frequencies")),
            *(documents, frequencies, written),
        )
    num_filled, num_tokens = int(np.count_nonzero(lengths)), int(lengths.sum(dtype=np.int64))
    _write_windows(directory, ends, inverse_norms(num_tokens, num_filled), show_progress)
    sizes = {name: array_path(directory, name).stat().st_size for name in ARRAYS}
    write_header(directory, Header(FORMAT_VERSION, len(lengths), num_filled, num_tokens, WINDOW, sizes))


def _create(directory: Path, name: str, shape: tuple[int, ...]) -> NDArray:
    if 0 in shape:  # cannot be mapped
        _save(directory, name, np.empty(shape))
        return np.empty(shape, ARRAYS[name])
    return open_memmap(array_path(directory, name), "w+", ARRAYS[name], shape)


def _save(directory: Path, name: str, values: NDArray) -> None:
    np.save(array_path(directory, name), values.astype(ARRAYS[name]))


def _write_terms(directory: Path, terms: list[str]) -> None:
    encoded = [term.encode() for term in terms]
    order = sorted(range(len(terms)), key=encoded.__getitem__)
    text = b"".join(encoded[number] for number in order)
    _save(directory, "term_text", np.frombuffer(text, np.uint8))
    _save(directory, "term_ends", np.cumsum([len(encoded[number]) for number in order], dtype=np.int64))
    _save(directory, "term_numbers", np.array(order, np.int64))


def _write_windows(directory: Path, ends: NDArray[np.int64], norms: NDArray[np.float32], show_progress: bool) -> None:
    """The window tables of the frequent terms."""
    arrays = {
        name: np.load(array_path(directory, name), mmap_mode="r") if len(ends) else np.empty(0, ARRAYS[name])
        for name in ("documents", "frequencies", "length_codes")
    }
    num_windows = -(-len(arrays["length_codes"]) // WINDOW)
    counts = np.diff(ends, prepend=0)
    frequent = np.flatnonzero(counts >= POSTINGS_PER_WINDOW * max(1, num_windows))
    rows = np.full(len(ends), -1)
    rows[frequent] = np.arange(len(frequent))
    _save(directory, "window_rows", rows)
    starts = _create(directory, "window_starts", (len(frequent), num_windows + 1))
    maxima = _create(directory, "window_maxima", (len(frequent), num_windows))
    nothing = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
    postings = Postings(
        **{name: np.asarray(values) for name, values in arrays.items()},
        inverse_norms=norms,
        window_starts=nothing[0],
        window_maxima=nothing[1],
    )
    for row, term in enumerate(tqdm(frequent, "window tables", disable=not show_progress)):
        fill_window_row(postings, ends[term] - counts[term], ends[term], starts[row], maxima[row])


@numba.njit(cache=True)
def _total_counts(run_terms, run_counts, num_terms):
    """[terms] postings of each term over all runs."""
    counts = np.zeros(num_terms, np.int64)
    for element in range(len(run_terms)):
        counts[run_terms[element]] += run_counts[element]
    return counts


@numba.njit(cache=True)
def _merge_terms(
    first, end, run_ends, cursors, positions, run_terms, run_counts, run_documents, run_frequencies, documents,
    frequencies, written,
):  # fmt: skip
    """Append the postings of the terms first:end, those of each run in turn; returns how many postings are written."""
    for term in range(first, end):
        for run in range(len(run_ends)):
            element = cursors[run]
            if element < run_ends[run] and run_terms[element] == term:
                begin, count = positions[run], run_counts[element]
                documents[written : written + count] = run_documents[begin : begin + count]
                frequencies[written : written + count] = run_frequencies[begin : begin + count]
                written += count
                cursors[run] += 1
                positions[run] += count
    return written
