"""The weights an actor starts from: a Hugging Face directory, or a checkpoint of tools.convert or of another run."""

from __future__ import annotations

from pathlib import Path

from megatron_opid.actor.checkpoint_directory import read_description, refuse_other_model, shape_identity
from megatron_opid.weights.hf import HfWeights
from megatron_opid.weights.hf_config import ModelShape
from megatron_opid.weights.megatron import MegatronWeights, WeightSource, is_megatron


def open_stored_weights(directory: Path, shape: ModelShape) -> WeightSource:
    """The tensors in `directory`, checked against `shape`; of a checkpoint the weights alone, whatever layout wrote it.

    Raises: WeightsError naming every tensor or file at fault; CheckpointError if the checkpoint is of another model.
    """
    if not is_megatron(directory):
        return HfWeights(directory, shape)
    refuse_other_model(directory, read_description(directory)["identity"], shape_identity(shape))
    return MegatronWeights(directory, shape)
