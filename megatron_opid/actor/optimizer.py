"""AdamW over the model's gradients: data-parallel wrapping, Megatron's optimizer, the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import (
    MegatronOptimizer,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from megatron_opid.actor.model import PolicyModel, params_dtype
from megatron_opid.actor.optimizer_state import distributed_parts
from megatron_opid.config import ActorConfig, OptimizerConfig

# Of a parameter group: what the configuration says, not the checkpoint.
CONFIGURED = ("max_lr", "min_lr", "betas", "eps")


def wrap_for_data_parallel(chunks: Sequence[PolicyModel], actor: ActorConfig) -> list[DistributedDataParallel]:
    """The chunks with gradient buffers; gradients are reduced in fp32 and summed, never averaged."""
    config = chunks[0].config
    options = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=actor.distributed_optimizer,
        overlap_grad_reduce=actor.overlap_communication,
        overlap_param_gather=actor.overlap_communication and actor.distributed_optimizer,
    )
    wrapped = [
        DistributedDataParallel(
            config=config,
            ddp_config=options,
            module=Float16Module(config, chunk) if config.bf16 else chunk,
            disable_bucketing=number > 0,
        )
        for number, chunk in enumerate(chunks)
    ]
    no_sync = [chunk.no_sync for chunk in wrapped]
    config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    config.finalize_model_grads_func = _finalize_gradients
    return wrapped


def gather_parameters(chunks: Sequence[DistributedDataParallel]) -> None:
    """Before weights are read or swapped: finish an update whose all-gather waits for the next forward pass."""
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


@dataclass(frozen=True)
class Optimizer:
    """Megatron's optimizer and its schedule; `schedule.num_steps` counts updates."""

    megatron: MegatronOptimizer
    schedule: OptimizerParamScheduler

    def step(self) -> tuple[float, float]:
        """Clip, update the weights. Returns: gradient norm before clipping, learning rate of this update.

        Raises: FloatingPointError on every rank if the norm is not finite, before any weight has changed.
        """
        self.megatron.prepare_grads()
        grad_norm = float(self.megatron.get_grad_norm())
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"the gradient norm is {grad_norm}; the weights are unchanged")
        self.schedule.step(1)  # before the update, so that warm-up starts above zero
        self.megatron.step()
        return grad_norm, float(self.megatron.param_groups[0]["lr"])


def build_optimizer(
    config: OptimizerConfig, actor: ActorConfig, chunks: Sequence[DistributedDataParallel], num_training_steps: int
) -> Optimizer:
    """AdamW (no decay on norms and biases) and a schedule of `num_training_steps` updates, warm-up included."""
    dtype = params_dtype(actor)
    options = MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.epsilon,
        clip_grad=config.gradient_clip,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=actor.distributed_optimizer,
        overlap_param_gather=actor.overlap_communication and actor.distributed_optimizer,
        **_offload_options(config.offload_fraction),
    )
    optimizer = get_megatron_optimizer(options, list(chunks), config_overrides=get_standard_config_overrides(options))
    schedule = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        lr_warmup_steps=config.warmup_steps,
        lr_decay_steps=max(num_training_steps, config.warmup_steps + 1),
        lr_decay_style=config.schedule,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=1,
        wd_incr_style="constant",
        # A resumed run follows its own configuration and takes only the number of updates from the checkpoint.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
    return Optimizer(optimizer, schedule)


@contextmanager
def own_settings(optimizer: MegatronOptimizer) -> Iterator[None]:
    """What is loaded within this brings its own settings of each parameter group, of which the learning rate's bounds
    would have precedence over the schedule's: those of this run's configuration are put back."""
    own = [{key: group[key] for key in CONFIGURED if key in group} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, own, strict=True):  # not the groups of before
        group.update(settings)


def _offload_options(fraction: float) -> dict[str, Any]:
    """The optimizer's state of this share of the parameters in host memory, where a CPU Adam updates it."""
    if not fraction:
        return {}
    return {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": fraction,
        "overlap_cpu_optimizer_d2h_h2d": True,
        # Megatron-Core's offloading stands on this one's code path.
        "use_precision_aware_optimizer": True,
    }


def prepare_torch_adam_for_checkpoint(optimizer: MegatronOptimizer) -> None:
    """Make DistributedOptimizer's checkpoints work with torch's AdamW (where Transformer Engine's is not installed).

    Megatron-Core 0.16.1 expects state for every parameter before it saves or loads, and shares one `step` tensor
    between all parameters when it loads, which torch then advances once per parameter. Leaves any other Adam alone.
    """
    for part in distributed_parts(optimizer):
        if not isinstance(part.optimizer, torch.optim.AdamW):
            continue
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                _initialize_adam_state(part.optimizer.state[parameter], parameter)
        if not part.optimizer.state:
            # A pipeline stage without experts has an expert optimizer of no parameters, whose step is asked for.
            part.optimizer.state[_NO_PARAMETER] = {"step": torch.zeros(())}
        if not isinstance(part._set_main_param_and_optimizer_states, _SeparateSteps):
            part._set_main_param_and_optimizer_states = _SeparateSteps(part)


_NO_PARAMETER = "no parameter"


class _SeparateSteps:
    """Stands for the optimizer's method of this place: gives a loaded parameter its own `step` tensor first."""

    def __init__(self, optimizer: DistributedOptimizer) -> None:
        self._optimizer = optimizer
        self._original = optimizer._set_main_param_and_optimizer_states

    def __call__(self, model_parameter: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
        group, order = self._optimizer.model_param_group_index_map[model_parameter]
        inner = self._optimizer.optimizer
        state = inner.state[inner.param_groups[group]["params"][order]]
        state["step"] = state["step"].clone()
        self._original(model_parameter, {**tensors, "step": state["step"]})


def _initialize_adam_state(state: dict[str, torch.Tensor], parameter: torch.Tensor) -> None:
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)


def _finalize_gradients(chunks: Sequence[torch.nn.Module], num_tokens: torch.Tensor, **options: Any) -> None:
    """Reduce over all groups, without Megatron's division by `num_tokens`: the loss's weights hold the normaliser."""
    finalize_model_grads(list(chunks), None, **options)
