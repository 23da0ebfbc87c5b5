"""What the trainer hands to the actor: token sequences to score and samples to learn from. Arrays are numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and the response to it: integer [num_prompt], [num_response], neither empty."""

    prompt_ids: np.ndarray
    response_ids: np.ndarray

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0 or len(self.response_ids) == 0:
            raise ValueError(
                f"a sequence of {len(self.prompt_ids)} prompt and {len(self.response_ids)} response tokens; "
                "both must have at least one token"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the model: the last response token is only predicted."""
        return len(self.prompt_ids) + len(self.response_ids) - 1


@dataclass(frozen=True)
class ScoreRequest:
    """One sequence to score with the `policy` or the `reference` weights.

    Requests of the same `batch` are packed among themselves, exactly as `Actor.update` packs the same sequences in the
    same order: old log-probs are bitwise those of the first update if each update's samples are a batch of their own.
    """

    sequence: TokenSequence
    weights: str = "policy"
    batch: int = 0

    def __post_init__(self) -> None:
        if self.weights not in ("policy", "reference"):
            raise ValueError(f"ScoreRequest.weights={self.weights!r}; set policy or reference")


@dataclass(frozen=True)
class PolicySample:
    """One sample of an update. Every array is float [num_response].

    A term is given for all samples of an update or for none; algorithm.losses.PolicyTerms explains them.
    `distillation_weights` include their own aggregation.
    """

    sequence: TokenSequence
    old_logprobs: np.ndarray
    advantages: np.ndarray
    reference_logprobs: np.ndarray | None = None
    correction: np.ndarray | None = None
    teacher_delta: np.ndarray | None = None
    distillation_weights: np.ndarray | None = None


@dataclass(frozen=True)
class OnPolicySample:
    """One sample of an update whose own forward pass gives the old log-probs. Every array is float [num_response].

    `advantages` without the skill term; `teacher_logprobs` and `teacher_masks` are [num_response, levels], the levels
    those of OldPolicyRules.teacher_weights. A term is given for all samples of an update or for none.
    """

    sequence: TokenSequence
    advantages: np.ndarray
    reference_logprobs: np.ndarray | None = None
    engine_logprobs: np.ndarray | None = None
    teacher_logprobs: np.ndarray | None = None
    teacher_masks: np.ndarray | None = None
    distillation_weights: np.ndarray | None = None
