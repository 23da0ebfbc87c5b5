"""The files that FSDP trainers write, one per rank: `model_world_size_N_rank_R.pt`, a state dict of this rank's pieces.

The files are pickles. Only tensors, what a DTensor is made of and (FSDP1 without a device mesh) what a ShardedTensor is
made of are read; any other name in a file is refused and nothing of it is run. Files are mapped, not read: memory is
needed for the tensor in hand alone.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import metadata as sharded_metadata
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed._shard.sharding_spec import ChunkShardingSpec, EnumerableShardingSpec
from torch.distributed.remote_device import _remote_device
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

from megatron_opid.weights.hf import WeightsError

RANK_FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
MAX_FAULTS = 10


@dataclass(frozen=True)
class Piece:
    """Rows and columns of a tensor that lie in the file of `rank`."""

    rank: int
    offsets: tuple[int, ...]
    values: Tensor

    @property
    def box(self) -> tuple[slice, ...]:
        return tuple(slice(at, at + size) for at, size in zip(self.offsets, self.values.shape, strict=True))


@dataclass(frozen=True)
class SplitTensor:
    """A tensor of all files together; a piece that several ranks hold is there once for each of them."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]


class RankFiles:
    """The tensors of a directory of rank files by their names in the state dict.

    Raises:
        WeightsError: a rank's file is missing, torn, or holds what is not read; files of two world sizes; a tensor
            whose pieces contradict or do not make it whole. All of it before a tensor is read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paths = _rank_paths(directory)
        states = [_load(path) for path in self._paths]
        names = dict.fromkeys(name for state in states for name, value in state.items() if isinstance(value, Tensor))
        self.tensors: dict[str, SplitTensor] = {}
        faults = []
        for name in names:
            try:
                self.tensors[name] = self._split(name, states)
            except ValueError as error:
                faults.append(f"{name}: {error}")
        if faults:
            more = f" (and {len(faults) - MAX_FAULTS} more tensors)" if len(faults) > MAX_FAULTS else ""
            raise WeightsError(f"{directory}: " + "; ".join(faults[:MAX_FAULTS]) + more)

    def read(self, name: str) -> Tensor:
        """The tensor `name`, whole, in its own dtype. Raises: WeightsError if copies of a piece differ."""
        tensor = self.tensors[name]
        result, holders = torch.empty(tensor.sizes, dtype=tensor.dtype), {}
        for piece in tensor.pieces:
            place = result[piece.box]
            other = holders.setdefault((piece.offsets, piece.values.shape), piece.rank)
            if other == piece.rank:
                place.copy_(piece.values)
            elif not same_bits(place, piece.values):
                files = f"{self._paths[other].name} and {self._paths[piece.rank].name}"
                raise WeightsError(f"{self._directory}: {name} is replicated, but its copies in {files} differ")
        return result

    def _split(self, name: str, states: Sequence[dict[str, Any]]) -> SplitTensor:
        missing = [path.name for path, state in zip(self._paths, states, strict=True) if name not in state]
        if missing:
            raise ValueError(f"not in {', '.join(missing)}")
        values = [state[name] for state in states]
        kinds = {(tuple(value.shape), value.dtype, _placement(value)) for value in values}
        if len(kinds) > 1:
            raise ValueError(f"the ranks' files contradict: {sorted(map(str, kinds))}")
        pieces = tuple(
            piece for rank, value in enumerate(values) for piece in _pieces(value, rank) if piece.values.numel()
        )
        boxes = {(piece.offsets, piece.values.shape) for piece in pieces}
        held, whole = sum(math.prod(sizes) for _, sizes in boxes), values[0].numel()
        if held != whole:
            raise ValueError(f"the files of {len(states)} ranks hold {held} of {whole} elements")
        return SplitTensor(tuple(values[0].shape), values[0].dtype, pieces)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN and signed zero included; both of one shape and dtype."""
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def has_rank_files(directory: Path) -> bool:
    return any(RANK_FILE.fullmatch(path.name) for path in directory.iterdir())


def _rank_paths(directory: Path) -> list[Path]:
    """The files in the order of their ranks."""
    found = {path.name: RANK_FILE.fullmatch(path.name) for path in directory.iterdir()}
    sizes = {int(match[1]) for match in found.values() if match}
    if len(sizes) != 1:
        raise WeightsError(
            f"{directory} holds files of world sizes {sorted(sizes)}; keep those of one checkpoint, delete the others"
        )
    (world_size,) = sizes
    paths = [directory / f"model_world_size_{world_size}_rank_{rank}.pt" for rank in range(world_size)]
    missing = [path.name for path in paths if path.name not in found]
    if missing:
        raise WeightsError(f"{directory}: {', '.join(missing)} missing, of {world_size} ranks' files")
    return paths


def _load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(SHARDED_TENSOR_GLOBALS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0].strip() or str(error)
        raise WeightsError(f"{path} holds what is no part of a model and is not unpickled: {reason}") from error
    except (RuntimeError, EOFError, AttributeError, TypeError, KeyError) as error:
        raise WeightsError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); the file is torn, restore it"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def _placement(value: Tensor) -> str:
    """How a tensor is dealt to the ranks: the same on all of them."""
    if isinstance(value, DTensor):
        return f"{value.placements} over ranks {_mesh_ranks(value).tolist()}"
    return type(value).__name__


def _mesh_ranks(value: DTensor) -> Tensor:
    """The mesh as an array of ranks. Up to torch 2.9 it was an attribute, and stands as such in the file."""
    pickled = vars(value.device_mesh)
    return pickled["mesh"] if "mesh" in pickled else value.device_mesh.mesh  # noqa: SIM401 (the property may fail)


def _pieces(value: Tensor, rank: int) -> Iterator[Piece]:
    """What the file of `rank` holds of a tensor. Raises: ValueError if that is not what its placement says."""
    if isinstance(value, ShardedTensorStandIn):
        for shard in value.local_shards:
            if list(shard.tensor.shape) != list(shard.metadata.shard_sizes):
                raise ValueError(f"rank {rank} holds {tuple(shard.tensor.shape)}, not {shard.metadata.shard_sizes}")
            yield Piece(rank, tuple(shard.metadata.shard_offsets), shard.tensor.detach())
    elif isinstance(value, DTensor):
        yield _local_piece(value, rank)
    else:
        yield Piece(rank, (0,) * value.dim(), value.detach())


def _local_piece(value: DTensor, rank: int) -> Piece:
    ranks, local = _mesh_ranks(value), value._local_tensor.detach()
    if any(placement.is_partial() for placement in value.placements):
        raise ValueError(f"placement {value.placements} is a sum that is not made yet; it is not read")
    coordinate = (ranks == rank).nonzero().tolist()
    if len(coordinate) != 1:
        raise ValueError(f"its mesh of ranks {ranks.tolist()} has no rank {rank}: files of another world size")
    sizes, offsets = _compute_local_shape_and_global_offset(value.shape, ranks.shape, coordinate[0], value.placements)
    if tuple(local.shape) != tuple(sizes):
        raise ValueError(f"rank {rank} holds {tuple(local.shape)}, its placement {value.placements} says {sizes}")
    return Piece(rank, tuple(offsets), local)


class ShardedTensorStandIn(Tensor):
    """What a ShardedTensor of a file becomes: the real class asks for the process group that wrote it."""

    local_shards: list[Shard]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.local_shards = state[0]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{function} of a sharded tensor; use its local shards")


class _ProcessGroupState(tuple):
    """Ranks of the writer; not needed."""

    def __new__(cls, *values: int) -> _ProcessGroupState:
        return super().__new__(cls, values)


def _nested_class(owner: Any, name: str) -> type:
    """`getattr` as far as a file needs it: a ShardedTensor's nested class is pickled so."""
    if owner is ShardedTensorStandIn and name == "ProcessGroupState":
        return _ProcessGroupState
    raise pickle.UnpicklingError(f"WeightsUnpickler error: getattr({owner!r}, {name!r})")


SHARDED_TENSOR_GLOBALS = [
    (ShardedTensorStandIn, "torch.distributed._shard.sharded_tensor.api.ShardedTensor"),
    (_nested_class, "builtins.getattr"),
    _ProcessGroupState,
    Shard,
    ShardMetadata,
    sharded_metadata.ShardedTensorMetadata,
    sharded_metadata.TensorProperties,
    sharded_metadata.MEM_FORMAT_ENCODING,
    EnumerableShardingSpec,
    ChunkShardingSpec,
    _remote_device,
]
