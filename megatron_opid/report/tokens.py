"""From a scored batch to the records that the report colours responses by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from megatron_opid.batch import Batch, Scores
from megatron_opid.report.records import TokenScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_scores(
    batch: Batch, scores: Scores, advantages: Tensor, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TokenScores]:
    """One record per sample and skill level that scored it; `advantages` [T] is what the tokens were trained with."""
    ends = np.cumsum(batch.lengths.numpy())
    for sample, start, end in zip(batch.samples, ends - batch.lengths.numpy(), ends, strict=True):
        trajectory = batch.trajectories[sample.trajectory]
        for level, teacher in scores.teachers.items():
            if trajectory.skills is None or getattr(sample.teacher_prompts, level) is None:
                continue
            old = scores.old[start:end]
            yield TokenScores(
                uid=trajectory.uid,
                index=sample.index,
                level=level,
                skill=trajectory.skills.episode if level == "episode" else trajectory.skills.steps[sample.index],
                token_texts=tuple(tokenizer.decode([token]) for token in sample.response_ids),
                old_logprobs=tuple(old.tolist()),
                teacher_logprobs=tuple(teacher.logprobs[start:end].tolist()),
                advantages=tuple(advantages[start:end].tolist()),
            )
