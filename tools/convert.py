"""Converts models between Hugging Face directories and Megatron checkpoints, tensor by tensor, on a CPU.

    python -m tools.convert hf-to-megatron SRC DST [--tensor-parallel N --pipeline-parallel N --expert-parallel N]
    python -m tools.convert megatron-to-hf SRC DST [--model DIR]     SRC: DST of the above, or RUN/checkpoints/step_N
    python -m tools.convert inspect SRC
    python -m tools.convert verify A B                               bit for bit; any two of either kind

A Megatron checkpoint can be loaded in any parallel layout; the sizes only decide how it is cut into files. Start a run
from it with actor.weights=DST. No GPU and no process group are needed, and memory stays at about one output shard.
Sources that are not here are looked for below MODELS_ROOT, as a run looks for its model.
Exit codes: 0 done; 1 the models of `verify` differ; 2 refused, or failed, with nothing written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from megatron_opid.actor.checkpoint_directory import DESCRIPTION, CheckpointError, shape_identity
from megatron_opid.actor.layout import model_size_faults
from megatron_opid.config import ActorConfig, resolve_model
from megatron_opid.weights.hf import HfWeights, WeightsError
from megatron_opid.weights.hf_config import HfConfigError, ModelShape
from megatron_opid.weights.megatron import is_megatron, write_megatron
from megatron_opid.weights.stored import TargetLayout
from rollout.hf_directory import MAX_SHARD_BYTES, copy_companions
from tools.model_output import (
    OutputError,
    dtype_of,
    num_parameters,
    progress_of,
    refuse,
    reported,
    write_hf_model,
)
from tools.model_source import open_model

MAX_SHOWN = 10


def hf_to_megatron(source: Path, target: Path, layout: TargetLayout) -> None:
    """Write the checkpoint `target` from the Hugging Face directory `source`; it appears complete or not at all."""
    if is_megatron(source):
        raise OutputError(f"{source} is a Megatron checkpoint already; any layout can load it as it is")
    model = open_model(source)
    refuse(target, model, [*layout_faults(model.shape, layout), *dtype_faults(HfWeights(source, model.shape))])
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with progress_of(model) as progress:
            write_megatron(temporary, model.weights, model.shape, layout, report=progress.update)
        copy_companions(model.companions, temporary, dtype_of(model))
        (temporary / DESCRIPTION).write_text(json.dumps(_description(model.shape, layout), indent=1))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def megatron_to_hf(source: Path, target: Path, model_dir: Path | None, max_shard_bytes: int) -> None:
    """Write the Hugging Face directory `target` from the weights of a checkpoint; complete or not at all."""
    if not is_megatron(source):
        raise OutputError(f"{source} is no Megatron checkpoint; give a directory that holds megatron/, as step_N does")
    model = open_model(source, model_dir)
    write_hf_model(model, target, max_shard_bytes)


def inspect(source: Path, model_dir: Path | None) -> dict[str, object]:
    """What a model is: kind, shape, sizes, and where its description comes from."""
    model = open_model(source, model_dir)
    files = sorted(path for path in source.rglob("*") if path.suffix in (".safetensors", ".distcp"))
    facts: dict[str, object] = {
        "kind": "Megatron checkpoint" if is_megatron(source) else "Hugging Face directory",
        "parameters": num_parameters(model.shape),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "tensors": len(model.tensor_names),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "config": str(model.companions / "config.json"),
        **shape_identity(model.shape),
    }
    if is_megatron(source):
        description = json.loads((source / DESCRIPTION).read_text())
        facts["step"] = description["step"]
        facts["weights_only"] = description.get("weights_only", False)
    return facts


def verify(first: Path, second: Path, model_dir: Path | None) -> list[str]:
    """The names of the tensors that are not equal, bit for bit, each with how they differ; empty: equal models."""
    a, b = open_model(first, model_dir), open_model(second, model_dir)
    if a.shape != b.shape:
        ours, theirs = shape_identity(a.shape), shape_identity(b.shape)
        return [f"{name} is {ours[name]!r} in A, {theirs[name]!r} in B" for name in ours if ours[name] != theirs[name]]
    differences = []
    with progress_of(a) as progress:
        for name, tensor in reported(a, progress):
            fault = _difference(tensor, b.weights.get(name))
            if fault:
                differences.append(f"{name}: {fault}")
    return differences


def layout_faults(shape: ModelShape, layout: TargetLayout) -> list[str]:
    """Which sizes of the layout do not divide the model's."""
    actor = ActorConfig(
        tensor_parallel=layout.tensor_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        expert_parallel=layout.expert_parallel,
    )
    return model_size_faults(actor, shape)


def dtype_faults(weights: HfWeights) -> list[str]:
    """Tensors of another dtype than most: Megatron stacks the layers and fuses q, k, v, and a stack has one dtype."""
    dtypes = weights.dtypes()
    (common, _), *_ = Counter(dtypes.values()).most_common(1)
    return [f"tensor {name} is {dtype}, the others {common}" for name, dtype in dtypes.items() if dtype != common]


def _description(shape: ModelShape, layout: TargetLayout) -> dict[str, object]:
    """checkpoint.json of a checkpoint without an optimizer."""
    num_ranks = layout.tensor_parallel * layout.pipeline_parallel * layout.expert_parallel
    return {
        "step": 0,
        "identity": shape_identity(shape),
        "num_ranks": num_ranks,
        "trainer_state": {},
        "weights_only": True,
    }


def _difference(a: Tensor, b: Tensor) -> str | None:
    if a.dtype != b.dtype:
        return f"{a.dtype} in A, {b.dtype} in B"
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    if torch.equal(a.view(as_integers), b.view(as_integers)):
        return None
    num_different = int((a.view(as_integers) != b.view(as_integers)).sum())
    return f"{num_different} of {a.numel()} elements differ, by up to {(a.double() - b.double()).abs().max():.3g}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    to_megatron = commands.add_parser("hf-to-megatron")
    to_hf = commands.add_parser("megatron-to-hf")
    for command in (to_megatron, to_hf):
        command.add_argument("source", type=resolve_model)
        command.add_argument("target", type=Path)
    for name in ("tensor", "pipeline", "expert"):
        to_megatron.add_argument(f"--{name}-parallel", type=_positive, default=1)
    to_hf.add_argument("--max-shard-bytes", type=_positive, default=MAX_SHARD_BYTES)
    inspect_command = commands.add_parser("inspect")
    inspect_command.add_argument("source", type=resolve_model)
    verify_command = commands.add_parser("verify")
    verify_command.add_argument("first", type=resolve_model)
    verify_command.add_argument("second", type=resolve_model)
    for command in (to_hf, inspect_command, verify_command):
        text = "config.json and tokenizer of a checkpoint that has none"
        command.add_argument("--model", type=resolve_model, help=text)
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    if options.command == "hf-to-megatron":
        layout = TargetLayout(options.tensor_parallel, options.pipeline_parallel, options.expert_parallel)
        hf_to_megatron(options.source, options.target, layout)
    elif options.command == "megatron-to-hf":
        megatron_to_hf(options.source, options.target, options.model, options.max_shard_bytes)
    elif options.command == "inspect":
        print(json.dumps(inspect(options.source, options.model), indent=2))
        return 0
    else:
        differences = verify(options.first, options.second, options.model)
        for line in differences[:MAX_SHOWN]:
            print(line)
        print(f"{len(differences)} differences" if differences else "equal, bit for bit")
        return 1 if differences else 0
    print(f"{options.target} is complete")
    return 0


def main(arguments: list[str] | None = None) -> int:
    try:
        return _run(_parse(arguments))
    except (OutputError, HfConfigError, WeightsError, CheckpointError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
