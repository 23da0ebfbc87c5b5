"""The life of a run: its directory, where it resumes, what it records, when it saves, and how it stops on a signal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megatron_opid.actor.actor import Actor
from megatron_opid.actor.checkpoint_directory import latest_checkpoint, read_attachment
from megatron_opid.config import Config
from megatron_opid.exchange import any_rank
from megatron_opid.launch import request_flag
from megatron_opid.metrics import BEFORE_TRAINING, MetricsLogger, Timer, save_config
from megatron_opid.report.html import write_report
from megatron_opid.report.records import (
    TokenScores,
    token_scores_path,
    trajectories_path,
    write_token_scores,
)
from megatron_opid.resume import job_identity
from rollout.record import write_trajectories
from rollout.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Kept(Protocol):
    """What goes on after a resume besides the actor: its state is kept in every checkpoint."""

    def state(self) -> str: ...

    def restore(self, state: str) -> None: ...


class Run:
    """One training run in `config.run.dir`, resumed from its last checkpoint if it has one. A context manager.

    SIGTERM, SIGUSR1 and SIGINT, to any rank, end it after the step in progress, with a checkpoint; `exit_code` is then
    128 + the signal's number, else 0.
    """

    def __init__(self, config: Config, actor: Actor, *, entry_point: str, rank: int, kept: Kept | None = None) -> None:
        self.exit_code = 0
        self._kept = kept
        self._job = job_identity(entry_point, config)
        self.timer = Timer()
        self._config, self._actor, self._rank = config.run, actor, rank
        self._dir = Path(config.run.dir)
        checkpoint = latest_checkpoint(self._dir / "checkpoints")
        self.start_step = self._resume(checkpoint) if checkpoint is not None else 0
        self._was_complete = self.start_step >= config.run.num_steps  # by the configuration that is written down
        plain = save_config(self._dir, config, self.start_step) if rank == 0 and not self._was_complete else {}
        self._logger = MetricsLogger(
            self._dir,
            config=plain,
            num_steps=config.run.num_steps,
            start_step=self.start_step,
            rank=rank,
            wandb_mode=config.run.wandb,
            wandb_project=config.run.wandb_project,
        )
        self._signal = request_flag([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])

    def steps(self) -> Iterator[int]:
        """The steps still to do; after each, a checkpoint where one is due or the run was told to stop."""
        for step in range(self.start_step, self._config.num_steps):
            yield step
            self._actor.finish_saves(waits=False)
            received = any_rank(self._signal())
            if received or self._is_due(step, self._config.save_every):
                with self.timer("checkpoint"):  # in the metrics of the next step, as its wall time has it
                    self._save(step + 1)
            if received:
                self.exit_code = 128 + received
                break
        self._actor.finish_saves(waits=True)

    def validates_after(self, step: int) -> bool:
        """Whether the policy is validated after step `step`; `BEFORE_TRAINING` asks for before the first."""
        if step == BEFORE_TRAINING:
            return self._config.validate_first and self.start_step == 0
        return self._is_due(step, self._config.validate_every)

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log a step's metrics, with the seconds of its phases."""
        self._logger.log(step, {**metrics, "time": self.timer.take()})

    def keeps_trajectories_of(self, step: int) -> bool:
        """Whether this rank writes the trajectories of `step` down."""
        return self._rank == 0 and self._is_due(step, self._config.save_trajectories_every)

    def keep(self, step: int, trajectories: Iterable[Trajectory], token_scores: Iterable[TokenScores]) -> None:
        """Write a step's trajectories and how the skills scored their tokens, for the report and for replay."""
        write_trajectories(trajectories_path(self._dir, step), trajectories)
        write_token_scores(token_scores_path(self._dir, step), token_scores)

    def finish(self, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Export the policy as a Hugging Face directory (`<dir>/hf`) if training is complete; write the report.

        Both are named on the screen; of a run that was stopped the launcher tells.
        """
        if self.exit_code == 0:
            self._actor.save_hf(self._dir / "hf")
        if self._rank == 0:
            report = write_report(self._dir, tokenizer)
            if self.exit_code == 0:
                self._logger.conclude(self._conclusion(report))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self._logger.close()

    def _conclusion(self, report: Path) -> str:
        done = "was complete already" if self._was_complete else "is complete"
        return f"{self._dir} {done}; the model: {self._dir / 'hf'}, the report: {report}"

    def _resume(self, checkpoint: Path) -> int:
        """Returns: the step to go on with."""
        if self._rank == 0:
            print(f"resuming from {checkpoint}", file=sys.stderr, flush=True)
        state = self._actor.load(checkpoint)
        if self._kept is not None:
            self._kept.restore(read_attachment(checkpoint))
        return state["step"]

    def _save(self, num_steps_done: int) -> None:
        self._actor.save(
            self._dir / "checkpoints",
            num_steps_done,
            {"step": num_steps_done, "job": self._job},
            attachment=self._kept.state() if self._kept is not None else "",
            keep=self._config.keep_checkpoints,
            waits=not self._config.async_checkpoints,
        )

    def _is_due(self, step: int, every: int) -> bool:
        return (step + 1) % every == 0 or step + 1 == self._config.num_steps
