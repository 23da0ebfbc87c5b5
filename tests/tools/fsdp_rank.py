"""A rank of two that writes FSDP checkpoints, as trainers do, for the tests of tools.merge.

Usage: python -m tests.tools.fsdp_rank <directory of models> <directory of checkpoints>, with torchrun's environment.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

COLUMN_SPLIT = ("o_proj", "down_proj")


def main(models: str, checkpoints: str) -> None:
    dist.init_process_group("gloo")
    for name in ("qwen2_tied", "qwen3_untied", "qwen3_moe"):
        state = fsdp2(Path(models) / name, init_device_mesh("cpu", (2,)))
        write(Path(checkpoints) / name, state)
    replicated = fsdp2(
        Path(models) / "qwen3_untied", init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    )
    write_rank_file(Path(checkpoints) / "replicated", replicated)
    write_rank_file(Path(checkpoints) / "sharded_tensor", fsdp1(Path(models) / "qwen3_untied"))
    write_rank_file(Path(checkpoints) / "tensors", assorted_tensors())
    with_older_meshes(lambda: write_rank_file(Path(checkpoints) / "older_torch", replicated))
    dist.barrier()
    dist.destroy_process_group()


def fsdp2(directory: Path, mesh: DeviceMesh) -> dict[str, Any]:
    """Layers and root sharded one by one; some matrices along their columns."""
    model = load(directory)
    columns = [module.weight for name, module in model.named_modules() if name.endswith(COLUMN_SPLIT)]
    in_columns = {id(weight) for weight in columns if isinstance(weight, torch.Tensor)}

    def placement(parameter: torch.nn.Parameter) -> Shard | None:
        return Shard(1) if id(parameter) in in_columns else None

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=placement)
    fully_shard(model, mesh=mesh)
    return model.state_dict()


def fsdp1(directory: Path) -> dict[str, Any]:
    """Without a device mesh its state dict is made of ShardedTensors."""
    model = FullyShardedDataParallel(load(directory), device_id=torch.device("cpu"), use_orig_params=True)
    kind, config = StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=True)
    with warnings.catch_warnings(action="ignore"), FullyShardedDataParallel.state_dict_type(model, kind, config):
        return model.state_dict()


def assorted_tensors() -> dict[str, Any]:
    mesh, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    tensor = torch.arange(15.0).view(5, 3)
    return {
        "uneven rows": distribute_tensor(tensor, mesh, [Shard(0)]),
        "uneven columns": distribute_tensor(tensor, mesh, [Shard(1)]),
        "one row": distribute_tensor(tensor[:1], mesh, [Shard(0)]),
        "replicated": distribute_tensor(tensor, mesh, [Replicate()]),
        "two dimensions": distribute_tensor(tensor, grid, [Shard(0), Shard(1)]),
        "plain": tensor,
        "no tensor": 3,
    }


def with_older_meshes(write_files: Callable[[], None]) -> None:
    """Pickled as up to torch 2.8, where a mesh kept its ranks as an attribute."""
    current = DeviceMesh.__getstate__

    def older_state(mesh: DeviceMesh) -> dict[str, Any]:
        return {"device_type": "cpu", "mesh": mesh.mesh, "mesh_dim_names": None, "_thread_id": None}

    DeviceMesh.__getstate__ = older_state
    try:
        write_files()
    finally:
        DeviceMesh.__getstate__ = current


def write(directory: Path, state: dict[str, Any]) -> None:
    write_rank_file(directory / "files", state)
    dcp.save({"model": state, "step": 3, "optimizer": {"momentum": torch.ones(4)}}, checkpoint_id=directory / "dcp")


def write_rank_file(directory: Path, state: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(state, directory / f"model_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt")


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto")


if __name__ == "__main__":
    main(*sys.argv[1:])
