"""Merges an FSDP checkpoint into a Hugging Face directory, tensor by tensor, on a CPU.

    python -m tools.merge SRC DST [--model DIR] [--dtype bfloat16] [--prefix model.]

SRC holds what torch.distributed.checkpoint wrote (FSDP2 or FSDP1), or a file per rank, model_world_size_N_rank_R.pt,
with DTensor or ShardedTensor pieces. No GPU and no process group are needed; memory stays at about one output shard.
Nothing but tensors is unpickled. config.json, tokenizer and generation config come from --model, else from
SRC/huggingface or SRC. Weights are kept bit for bit, unless --dtype asks for another type.
Exit codes: 0 done; 2 refused, or failed, with nothing written.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from torch import Tensor

from megatron_opid.weights.hf import WeightsError
from megatron_opid.weights.hf_config import HfConfigError, parse_hf_config, read_hf_config
from megatron_opid.weights.megatron import WeightSource
from rollout.hf_directory import MAX_SHARD_BYTES
from tools.fsdp_weights import FsdpWeights
from tools.model_output import OutputError, write_hf_model
from tools.model_source import ModelSource

DTYPES = ("bfloat16", "float16", "float32")


class CastWeights:
    """Another source's tensors in `dtype`."""

    def __init__(self, weights: WeightSource, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype

    def get(self, name: str) -> Tensor:
        return self._weights.get(name).to(self._dtype)


def merge(
    source: Path,
    target: Path,
    *,
    model_dir: Path | None = None,
    dtype: str | None = None,
    prefix: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the Hugging Face directory `target` from the FSDP checkpoint `source`; complete or not at all.

    Raises: OutputError, WeightsError, HfConfigError, each naming what is wrong.
    """
    if not source.is_dir():
        raise OutputError(f"{source} is no directory; give that of an FSDP checkpoint")
    companions = model_dir or _companions(source)
    shape = parse_hf_config(read_hf_config(companions))
    weights: WeightSource = FsdpWeights(source, shape, prefix)
    if dtype is not None:
        weights = CastWeights(weights, getattr(torch, dtype))
    write_hf_model(ModelSource(source, shape, weights, companions), target, max_shard_bytes)


def _companions(source: Path) -> Path:
    for directory in (source / "huggingface", source):
        if (directory / "config.json").is_file():
            return directory
    raise HfConfigError(
        f"neither {source / 'huggingface'} nor {source} has a config.json; give the Hugging Face directory that "
        "training started from as --model"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", type=Path, help="directory of config.json and tokenizer")
    parser.add_argument("--dtype", choices=DTYPES, help="convert the weights; else they stay as they are")
    parser.add_argument("--prefix", help="what stands before the model's names, if the checkpoint holds several models")
    options = parser.parse_args(arguments)
    # Every file of DTensors would warn that the process groups of its mesh do not exist here.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
    try:
        merge(options.source, options.target, model_dir=options.model, dtype=options.dtype, prefix=options.prefix)
    except (OutputError, HfConfigError, WeightsError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
