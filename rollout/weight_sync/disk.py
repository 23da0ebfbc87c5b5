"""Weight sync over a file system that the trainer and the servers share: complete, versioned model directories."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from rollout.engines.http import HttpEngine
from rollout.engines.pool import EnginePool
from rollout.hf_directory import write_hf
from rollout.weight_sync.servers import Run, ServerSync


class DiskSync(ServerSync):
    """Writes `directory`/version_N, which appears complete or not at all, and has every server load it.

    At most `bucket_bytes` of tensors are held in host memory. The newest version stays on disk, so that a server
    which was restarted meanwhile can be given it without the trainer; older ones are deleted.

    Args:
        directory: of this run alone.
        source: the model directory whose config.json and tokenizer go with the weights.
    """

    def __init__(
        self,
        pool: EnginePool,
        run: Run,
        verify_every: int,
        *,
        is_sender: bool,
        directory: Path,
        source: Path,
        bucket_bytes: int,
    ):
        super().__init__(pool, run, verify_every, is_sender=is_sender)
        self._directory = directory.absolute()
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._version = 0
        if is_sender:
            pool.give_weights = self._give

    def transfer(self, named_tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        write_hf(self._path(version), named_tensors, source=self._source, max_shard_bytes=self._bucket_bytes)
        self._version = version
        self._run(self._pool.update(self._give, version))
        for path in self._directory.glob("version_*"):
            if path != self._path(version):
                shutil.rmtree(path, ignore_errors=True)  # a server may be reading it still; the next push tries again

    async def _give(self, engine: HttpEngine) -> None:
        await engine.load_from_disk(self._path(self._version), self._version)

    def _path(self, version: int) -> Path:
        return self._directory / f"version_{version}"
