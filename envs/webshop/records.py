"""Many JSON records in one file that every process maps: a blob of UTF-8 lines and where each begins.

The pages of a mapped file are shared by all processes of a machine, and what nobody reads is not in memory at all.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOB, _STARTS = "records.jsonl", "starts.npy"


class Records:
    """Read-only records, numbered from 0. Opening reads nothing but the header of a file."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError if `directory` holds no records."""
        self._starts: NDArray[np.int64] = np.load(directory / _STARTS, mmap_mode="r")
        with (directory / _BLOB).open("rb") as file:
            self._blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Any:
        """The record, decoded anew at every call."""
        self._blob.seek(int(self._starts[number]))
        return json.loads(self._blob.readline())

    def file_order(self) -> NDArray[np.int64]:
        """[records] the numbers of the records in the order in which they were written."""
        return np.argsort(self._starts, kind="stable")


def write_records(directory: Path, records: Iterable[tuple[str, Any]]) -> int:
    """Write (key, record) pairs as they come; record number n is the one with the n-th smallest key.

    Returns how many there were.
    """
    starts: list[int] = []
    keys: list[str] = []
    with (directory / _BLOB).open("wb") as blob:
        position = 0
        for key, record in records:
            keys.append(key)
            starts.append(position)
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            position += blob.write(line.encode(errors="surrogatepass") + b"\n")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    np.save(directory / _STARTS, np.array(starts, dtype=np.int64)[order])
    return len(keys)
