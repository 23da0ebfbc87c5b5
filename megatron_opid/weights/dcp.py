"""Directories of torch.distributed.checkpoint, read and written one tensor at a time in one process.

A directory holds `.metadata` (a pickle: which piece of which tensor lies where) and `*.distcp` files (pieces, each as
torch.save writes it). Only the classes that torch itself puts into `.metadata` are unpickled.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

METADATA = ".metadata"
# By exact name: a pickle may ask for `module.attribute.attribute`, so no whole module can be let through.
ALLOWED_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "pathlib": {"PosixPath"},
    "collections": {"OrderedDict"},
}


class DcpError(ValueError):
    """A directory is not complete, torn, or holds what is not read; the message names the file and the tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the directory: its sizes, and its pieces with the file places that hold them."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[ChunkStorageMetadata, _StorageInfo], ...]


class DcpReader:
    """The tensors of a directory by name.

    Raises:
        DcpError: `.metadata` is missing, torn or holds a class of somebody else's; a file is missing or too short; a
            tensor has a gap. All of it before a tensor is read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        metadata = _read_metadata(directory / METADATA)
        self.tensors = _stored_tensors(directory, metadata)
        faults = self._file_faults() + self._gap_faults()
        if faults:
            raise DcpError(f"{directory}: " + "; ".join(faults))

    @property
    def file_names(self) -> set[str]:
        return {info.relative_path for tensor in self.tensors.values() for _, info in tensor.pieces}

    def read(self, name: str, index: Sequence[int] = ()) -> Tensor:
        """The tensor `name` at `index` along its leading dimensions, whole, on the CPU, in its own dtype."""
        tensor, depth = self.tensors[name], len(index)
        result = torch.empty(tensor.sizes[depth:], dtype=tensor.dtype)
        for piece, info in tensor.pieces:
            lead = zip(piece.offsets[:depth], piece.sizes[:depth], index, strict=True)
            if all(offset <= wanted < offset + size for offset, size, wanted in lead):
                stored = self._load(name, piece, info)
                at = tuple(wanted - offset for wanted, offset in zip(index, piece.offsets, strict=False))
                box = zip(piece.offsets[depth:], piece.sizes[depth:], strict=True)
                result[tuple(slice(offset, offset + size) for offset, size in box)] = stored[at]
        return result

    def _load(self, name: str, piece: ChunkStorageMetadata, info: _StorageInfo) -> Tensor:
        with (self._directory / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            data = io.BytesIO(file.read(info.length))
        try:
            stored = torch.load(data, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise DcpError(f"{self._directory / info.relative_path}: tensor {name} cannot be read: {error}") from error
        if stored.shape != piece.sizes:
            raise DcpError(
                f"{self._directory / info.relative_path}: a piece of {name} has shape {tuple(stored.shape)}, "
                f"{METADATA} says {tuple(piece.sizes)}"
            )
        return stored

    def _file_faults(self) -> list[str]:
        """Files that are missing or end before the last tensor that they should hold."""
        needed: dict[str, tuple[int, str]] = {}
        for name, tensor in self.tensors.items():
            for _, info in tensor.pieces:
                end = (info.offset + info.length, name)
                needed[info.relative_path] = max(needed.get(info.relative_path, end), end)
        faults = []
        for file, (num_bytes, name) in sorted(needed.items()):
            path = self._directory / file
            if not path.is_file():
                faults.append(f"{file} is missing (it should hold {name})")
            elif path.stat().st_size < num_bytes:
                faults.append(f"{file} is truncated: {path.stat().st_size} bytes, {name} ends at {num_bytes}")
        return faults

    def _gap_faults(self) -> list[str]:
        faults = []
        for name, tensor in self.tensors.items():
            held = sum(math.prod(piece.sizes) for piece, _ in tensor.pieces)
            if held != math.prod(tensor.sizes):
                faults.append(f"the pieces of {name} hold {held} of {math.prod(tensor.sizes)} elements")
        return faults


class DcpWriter:
    """Writes a directory piece by piece; nothing but the piece in hand is in memory. `finish` makes it complete."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        self._tensors: dict[str, TensorStorageMetadata] = {}
        self._results: list[WriteResult] = []
        directory.mkdir(parents=True)

    def add(self, file: str, name: str, sizes: Sequence[int], offsets: Sequence[int], piece: Tensor) -> None:
        """Append `piece`, which lies at `offsets` in the tensor `name` of `sizes`, to `file`."""
        stream = self._files.get(file) or self._files.setdefault(file, (self._directory / file).open("wb"))
        stored = self._tensors.setdefault(
            name, TensorStorageMetadata(TensorProperties(dtype=piece.dtype), torch.Size(sizes), [])
        )
        index = MetadataIndex(name, torch.Size(offsets), len(stored.chunks))
        stored.chunks.append(ChunkStorageMetadata(torch.Size(offsets), piece.shape))
        start = stream.tell()
        torch.save(piece.clone() if piece.untyped_storage().nbytes() != piece.nbytes else piece, stream)
        length = stream.tell() - start
        self._results.append(WriteResult(index, length, _StorageInfo(file, start, length)))

    def finish(self) -> None:
        """Flush every file to the disk, then write `.metadata`."""
        self.close()
        FileSystemWriter(self._directory).finish(Metadata(self._tensors), [self._results])

    def close(self) -> None:
        for stream in self._files.values():
            if not stream.closed:
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()


def _enum_member(kind: Any, name: str) -> Enum:
    """What `getattr` may do: Python 3.11 pickled members of an enum so in its first releases, Debian 12's is one."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"it asks {kind!r} for {name!r}, which is no part of a checkpoint")
    return kind[name]


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in ALLOWED_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")


def _read_metadata(path: Path) -> Metadata:
    try:
        metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError:
        raise DcpError(f"{path} does not exist: {path.parent} is no complete torch distributed checkpoint") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, ValueError, KeyError) as error:
        raise DcpError(f"{path} cannot be read: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise DcpError(f"{path} holds no metadata of torch.distributed.checkpoint")
    return metadata


def _stored_tensors(directory: Path, metadata: Metadata) -> dict[str, StoredTensor]:
    tensors, source = {}, directory / METADATA
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            continue  # an object, such as an optimizer's settings
        pieces = []
        for piece in stored.chunks:
            info = metadata.storage_data.get(MetadataIndex(name, piece.offsets))
            if info is None:
                raise DcpError(f"{source} does not say where the piece of {name} at {tuple(piece.offsets)} lies")
            if Path(info.relative_path).name != info.relative_path:
                raise DcpError(
                    f"{directory / METADATA}: {name} lies in {info.relative_path!r}, outside of the directory"
                )
            if getattr(info, "transform_descriptors", None):
                raise DcpError(f"{source}: {name} is stored with {info.transform_descriptors}, which is not read")
            pieces.append((piece, info))
        tensors[name] = StoredTensor(tuple(stored.size), stored.properties.dtype, tuple(pieces))
    return tensors
