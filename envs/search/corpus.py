"""A corpus in the wiki-18 format: JSON lines {"id": ..., "contents": "\\"title\\"\\ntext"}, read by document number.

The text stays in the user's file. Beside the index lie `corpus.json`, which names that file, and `offsets.npy`, where
each of its lines begins.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DESCRIPTION, _OFFSETS = "corpus.json", "offsets.npy"


@dataclass(frozen=True)
class Document:
    """`contents` is the title in quotation marks, a line feed, and the text."""

    id: str
    contents: str


def parse_line(line: bytes, path: Path, number: int) -> Document:
    """Raises ValueError, naming the file and the line, if it is not of the format."""
    try:
        fields: dict[str, Any] = json.loads(line)
        return Document(str(fields["id"]), str(fields["contents"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}, line {number + 1} is not JSON with "id" and "contents"') from error


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a corpus file, in order.

    Raises:
        ValueError: the file is compressed, or a line is not of the format.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if number == 0 and line.startswith(b"\x1f\x8b"):
                raise ValueError(f"{path} is compressed; unpack it first (gunzip), documents are read by position")
            yield parse_line(line, path, number)


def fingerprint(path: Path) -> str:
    """Names a corpus file as it is now."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def describe(path: Path, directory: Path) -> int:
    """Write corpus.json and offsets.npy for the corpus at `path` into `directory`; the number of documents."""
    directory.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as lines:
        lengths = np.fromiter((len(line) for line in lines), np.int64)
    np.save(directory / _OFFSETS, np.concatenate(([0], np.cumsum(lengths))))
    inside = path.resolve().is_relative_to(directory.resolve())
    name = path.resolve().relative_to(directory.resolve()) if inside else path.resolve()
    description = {"path": str(name), "bytes": path.stat().st_size, "num_documents": len(lengths)}
    (directory / _DESCRIPTION).write_text(json.dumps(description))
    return len(lengths)


class Corpus:
    """An open corpus; every process that opens it shares the pages of the file."""

    def __init__(self, path: Path, offsets: NDArray[np.int64]) -> None:
        self._path = path
        self._offsets = offsets
        with path.open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @classmethod
    def open(cls, directory: Path) -> Corpus:
        """The corpus that `describe` wrote about into `directory`.

        Raises:
            ValueError: no description, or the corpus file is missing or another one; the message names the path.
        """
        try:
            description = json.loads((directory / _DESCRIPTION).read_text())
            path = directory / description["path"]
            if path.stat().st_size != description["bytes"]:
                raise ValueError(f"{path} is not the corpus that {directory} was built from; build the index again")
            return cls(path, np.asarray(np.load(directory / _OFFSETS, mmap_mode="r")))
        except (FileNotFoundError, KeyError) as error:
            raise ValueError(
                f"{directory} is no index of a corpus ({error}); make one with tools/build_index.py"
            ) from error

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Document:
        line = self._text[self._offsets[number] : self._offsets[number + 1]]
        return parse_line(line, self._path, number)
