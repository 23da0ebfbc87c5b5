"""What we add to a vLLM worker (by vllm_worker.py): the version of its weights, which dies with the process; weights
taken in place, where vLLM's own update would rebuild each layer; and digests of them (worker_weights.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rollout.engines.worker_shards import is_plain
from rollout.engines.worker_weights import WorkerWeights
from rollout.weight_sync.bucket import Bucket
from rollout.weight_sync.communicator import broadcast_together
from rollout.weight_sync.handles import open_handle


class WeightBook:
    """Mixed into the worker class by vLLM: no name here may be one of the worker's."""

    _opid_version: int | None = None
    _opid_in_place: bool | None = None  # found out once: which layers a model has does not change
    _opid_weights: WorkerWeights | None = None

    def opid_begin_update(self) -> dict[str, Any]:
        """The weights have no version from now on.

        Returns: their `version` until now; `in_place`: whether new ones are taken by `opid_receive` and `opid_read`;
        else by vLLM's own update.
        """
        held = self.opid_weight_version()
        self._opid_version = None
        if self._opid_in_place is None:
            has_all_layers = self.parallel_config.pipeline_parallel_size == 1
            self._opid_in_place = has_all_layers and is_plain(self.model_runner.get_model())
        if self._opid_in_place:
            self._opid_own_weights().begin()
        return held | {"in_place": self._opid_in_place}

    def opid_receive(self, version: int) -> None:
        """Take what the trainer broadcasts, until it says that all has come: the weights are `version` then.

        Raises: what `WorkerWeights.receive` does.
        """
        group = self.weight_transfer_engine.model_update_group

        def take(tensors: Sequence[Tensor]) -> None:
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            broadcast_together(group, tensors, stream)

        self._opid_own_weights().receive(take)
        self._opid_version = version

    def opid_read(
        self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], handles: Sequence[str]
    ) -> None:
        """Take the bucket that lies in another process's memory of this GPU; returns when it has been read."""
        bucket = Bucket.over(open_handle(handles, self.device), names, dtypes, shapes)
        fault = self._opid_own_weights().fill(bucket.tensors())
        torch.cuda.synchronize(self.device)
        if fault is not None:
            raise fault

    def opid_end_update(self, version: int, in_place: bool) -> None:
        """The weights are `version` from now on.

        Raises:
            RuntimeError: they were to be taken in place, and some did not come.
        """
        if in_place:
            self._opid_own_weights().end()
        elif torch.cuda.is_available():
            torch.cuda.synchronize()
        self._opid_version = version

    def opid_weight_version(self) -> dict[str, int | None]:
        return {"version": self._opid_version}

    def opid_weight_digests(self) -> dict[str, str]:
        return self._opid_own_weights().digests()

    def _opid_own_weights(self) -> WorkerWeights:
        if self._opid_weights is None:
            self._opid_weights = WorkerWeights(self.model_runner.get_model())
        return self._opid_weights
