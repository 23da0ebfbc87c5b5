"""The actor: a Megatron model that scores, learns, exports and is saved. Every method is a collective of all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from megatron_opid.actor import parallel
from megatron_opid.actor.checkpoint import CheckpointState, CheckpointWriter, load_checkpoint
from megatron_opid.actor.checkpoint_directory import identity, read_description
from megatron_opid.actor.head import HeadSettings
from megatron_opid.actor.model import build_model, transformer_config
from megatron_opid.actor.optimizer import build_optimizer, gather_parameters, wrap_for_data_parallel
from megatron_opid.actor.packing import Packer
from megatron_opid.actor.parameters import RankParameters
from megatron_opid.actor.part_times import PartTimers, timed_parts
from megatron_opid.actor.routing_replay import RoutingReplay
from megatron_opid.actor.samples import OnPolicySample, PolicySample, ScoreRequest, TokenSequence
from megatron_opid.actor.scoring import score_batches
from megatron_opid.actor.stored_weights import open_stored_weights
from megatron_opid.actor.update import PolicyUpdate, policy_update, sft_update
from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.algorithm.old_policy import OldPolicyRules
from megatron_opid.config import ActorConfig, OptimizerConfig, resolve_model
from megatron_opid.weights.hf import write_hf
from megatron_opid.weights.hf_config import parse_hf_config, read_hf_config
from megatron_opid.weights.megatron import WeightSource


class Actor:
    """Built from the Hugging Face directory `config.model`, on every rank of torchrun (or alone without it).

    All ranks call every method with the same arguments and get the same results; each data-parallel rank computes its
    balanced share. `num_training_steps` counts optimizer updates (for the learning-rate schedule). Log-probs are of the
    softmax at `temperature`. With `with_reference` the initial weights are kept in host memory for scoring. `weights`
    stand for those that the configuration names.

    Raises: HfConfigError, WeightsError for a model that cannot be read; actor.layout says what fits on how many ranks.
    """

    def __init__(
        self,
        config: ActorConfig,
        optimizer: OptimizerConfig,
        *,
        num_training_steps: int,
        temperature: float = 1.0,
        seed: int = 0,
        with_reference: bool = False,
        timeout_s: float = 1800.0,
        weights: WeightSource | None = None,
    ) -> None:
        self._config = config
        self._source = resolve_model(config.model)
        self._shape = parse_hf_config(read_hf_config(self._source))
        weights = weights or open_stored_weights(resolve_model(config.weights or config.model), self._shape)
        self._device = parallel.resolve_device(config.device)
        self._owns_world = parallel.initialize(config, self._device, seed=seed, timeout_s=timeout_s)
        with parallel.device_context(self._device):
            settings = HeadSettings(temperature, self._shape.vocab_size, config.head)
            megatron_config = transformer_config(self._shape, config, self._device)
            chunks = build_model(self._shape, megatron_config, settings, self._device)
            self._parameters = RankParameters.of(self._shape, chunks)
            self._parameters.load(weights)
            self._chunks = wrap_for_data_parallel(chunks, config)
            self._optimizer = build_optimizer(optimizer, config, self._chunks, num_training_steps)
            self._routing = RoutingReplay(chunks) if config.routing_replay else None
        self._reference = self._parameters.snapshot() if with_reference else None
        self._checkpoints = CheckpointWriter()
        self._packer = Packer.of(self._shape, config, self._device)

    def close(self) -> None:
        """Give the process groups back (torch.distributed too, if this actor started it); another Actor may follow.

        A checkpoint still being written is lost: call `finish_saves` before.
        """
        parallel.destroy(ends_world=self._owns_world)

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Log-probs float32 [num_response] of each request's response tokens: one pass per set of weights.

        Raises: ValueError for reference requests of an actor without a reference, or a sequence above the token budget.
        """
        sequences = [request.sequence for request in requests]
        results: dict[int, np.ndarray] = {}
        for weights in ("policy", "reference"):
            batches: dict[int, list[int]] = {}
            for index, request in enumerate(requests):
                if request.weights == weights:
                    batches.setdefault(request.batch, []).append(index)
            if batches:
                results |= self._score_with(weights, sequences, list(batches.values()))
        return [results[index] for index in range(len(requests))]

    def update(
        self,
        samples: Sequence[PolicySample] | Sequence[OnPolicySample],
        coefficients: LossCoefficients,
        *,
        aggregation: str = "token-mean",
        rules: OldPolicyRules | None = None,
    ) -> PolicyUpdate:
        """One optimizer update over all samples; OnPolicySamples take their old log-probs from its forward pass, and
        the terms that `rules` make of them. With routing_replay, PolicySamples must be a batch of a `score` since which
        nothing was exported.

        Returns: the statistics loss, each term of algorithm.losses.policy_loss, grad_norm (before clipping),
        learning_rate and max_ratio_deviation = max |π/π_old − 1|; and the log-probs before the update.
        Raises: FloatingPointError, with the weights unchanged, if the loss or the gradient is not finite.
        """
        with parallel.device_context(self._device), ExitStack() as stack:
            if self._routing is not None and isinstance(samples[0], PolicySample):
                stack.enter_context(self._routing.replaying())
            return policy_update(
                self._chunks,
                self._optimizer,
                self._packer,
                samples,
                coefficients,
                rules or OldPolicyRules(),
                aggregation,
            )

    def update_sft(self, sequences: Sequence[TokenSequence]) -> dict[str, float]:
        """One optimizer update of the mean cross-entropy of all response tokens: loss, grad_norm, learning_rate."""
        with parallel.device_context(self._device):
            return sft_update(self._chunks, self._optimizer, self._packer, sequences)

    def evaluate_sft(self, sequences: Sequence[TokenSequence]) -> float:
        """The mean cross-entropy of all response tokens, in nats."""
        scores = self.score([ScoreRequest(sequence) for sequence in sequences])
        self._forget_routing()
        return -float(np.concatenate(scores).mean(dtype=np.float64))

    def timed_parts(self) -> AbstractContextManager[PartTimers]:
        """Inside, the parts of updates are timed (part_times.PartTimers)."""
        return timed_parts(self._chunks, self._optimizer)

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """All Hugging Face tensors of the current weights by name, whole, on every rank, one parameter at a time.

        A collective: every rank exhausts the iterator. With routing_replay, what was scored before is not replayed
        after: the step's updates are done, and engines on these GPUs want the memory.
        """
        self._forget_routing()
        with parallel.device_context(self._device):
            gather_parameters(self._chunks)
        yield from self._parameters.stream()

    def save_hf(self, directory: Path) -> None:
        """Write a Hugging Face model directory (rank 0; all ranks take part); it appears complete or not at all."""
        if dist.get_rank() == 0:
            write_hf(directory, self.export(), source=self._source)
        else:
            for _ in self.export():
                pass
        dist.barrier()

    def save(
        self,
        directory: Path,
        step: int,
        trainer_state: dict[str, Any],
        *,
        attachment: str = "",
        keep: int = 2,
        waits: bool = True,
    ) -> Path:
        """Write the checkpoint `directory`/step_`step` and point `directory`/latest to it; keep the newest `keep`.

        Unless it `waits`, it is written while training goes on and counts from `finish_saves` on.
        """
        with parallel.device_context(self._device):
            gather_parameters(self._chunks)
            state = self._checkpoint_state()
            return self._checkpoints.save(
                directory, step, state, trainer_state, attachment=attachment, keep=keep, waits=waits
            )

    def finish_saves(self, *, waits: bool) -> None:
        """Publish the checkpoint that is written by now; with `waits`, the one still being written, too."""
        with parallel.device_context(self._device):
            self._checkpoints.finish(waits=waits)

    def load(self, path: Path) -> dict[str, Any]:
        """Resume from a checkpoint of any layout (see checkpoint_directory); returns its trainer state.

        A checkpoint without an optimizer (tools.convert) gives its weights, and training starts anew: nothing is
        returned but {}.
        """
        with parallel.device_context(self._device):
            if not read_description(path).get("weights_only", False):
                return load_checkpoint(path, self._checkpoint_state())
            gather_parameters(self._chunks)
            self._parameters.load(open_stored_weights(path, self._shape))
            self._optimizer.megatron.reload_model_params()
            return {}

    def _score_with(
        self, weights: str, sequences: Sequence[TokenSequence], batches: Sequence[Sequence[int]]
    ) -> dict[int, np.ndarray]:
        if weights == "reference" and self._reference is None:
            raise ValueError("this actor keeps no reference weights; build it with with_reference=True")
        with parallel.device_context(self._device), ExitStack() as stack:
            if weights == "reference":
                gather_parameters(self._chunks)
                stack.enter_context(self._parameters.exchanged(self._reference))
            elif self._routing is not None:
                stack.enter_context(self._routing.recording())
            return score_batches(self._chunks, self._packer, sequences, batches)

    def _forget_routing(self) -> None:
        if self._routing is not None:
            self._routing.forget()

    def _checkpoint_state(self) -> CheckpointState:
        return CheckpointState(identity(self._shape, self._config), self._chunks, self._optimizer)
