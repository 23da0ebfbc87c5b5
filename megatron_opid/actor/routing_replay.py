"""Routing replay of a mixture of experts: an update's forward sends each token to the experts that scoring chose.

Between scoring and a later update of the same step the weights change, and a token that another expert is a little
better for goes there: its log-prob jumps for no change of the policy worth the name. Replayed, old and new log-probs
differ by the weights alone. The chosen experts' weights are the router's own, and it learns by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.router_replay import RouterReplay, RouterReplayAction
from megatron.core.utils import unwrap_model
from torch import Tensor

Key = tuple[int, bytes]
"""Which chunk of this rank's, and the tokens of the micro-batch: an update packs its samples as scoring packed them."""


class RoutingReplay:
    """Hooks on the routers of `chunks`, whose config has moe_enable_routing_replay; idle but for the two contexts.

    Every rank records the layers and tokens that it holds, on the device: a byte for each expert of a token, two where
    a layer has more than 256. Whatever is scored is recorded, teacher prompts too, until it is forgotten.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module]) -> None:
        self._choices: dict[Key, list[Tensor]] = {}
        self._action: RouterReplayAction | None = None
        for number, chunk in enumerate(unwrap_model(list(chunks))):
            self._dtype = torch.uint8 if chunk.config.num_moe_experts <= 256 else torch.int16
            routers = [module.router_replay for module in chunk.modules() if isinstance(module, TopKRouter)]
            chunk.register_forward_pre_hook(partial(self._before, number, routers))
            chunk.register_forward_hook(partial(self._after, number, routers))
        RouterReplay.clear_global_router_replay_instances()  # Megatron's own list, which would outlive the model

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, forward passes are recorded, besides what was recorded before."""
        with self._acting(RouterReplayAction.RECORD):
            yield

    def forget(self) -> None:
        """Give the memory of what was recorded back: no update will ask for it."""
        self._choices = {}

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Inside, forward passes take what was recorded of the same micro-batch; ValueError where nothing was."""
        with self._acting(RouterReplayAction.REPLAY_FORWARD):
            yield

    @contextmanager
    def _acting(self, action: RouterReplayAction) -> Iterator[None]:
        self._action = action
        try:
            yield
        finally:
            self._action = None

    def _before(self, number: int, routers: Sequence[RouterReplay], chunk: torch.nn.Module, inputs: Any) -> None:
        if self._action is None:
            return
        if self._action is RouterReplayAction.REPLAY_FORWARD:
            choices = self._choices.get(_key(number, inputs))
            if choices is None:
                raise ValueError("no routing to replay: score an update's samples before, as a batch of their own")
            for router, chosen in zip(routers, choices, strict=True):
                router.set_target_indices(chosen.long())
        for router in routers:
            router.set_router_replay_action(self._action)

    def _after(
        self, number: int, routers: Sequence[RouterReplay], chunk: torch.nn.Module, inputs: Any, output: Any
    ) -> None:
        if self._action is RouterReplayAction.RECORD:
            recorded = [router.get_recorded_indices() for router in routers]
            self._choices[_key(number, inputs)] = [chosen.to(self._dtype) for chosen in recorded]
        for router in routers if self._action else ():
            router.clear_router_replay_action()
            router.clear_indices()


def _key(number: int, inputs: Any) -> Key:
    return number, inputs[0].cpu().numpy().tobytes()
