"""Token in, token out: what is trained on is what the engine saw and sampled, checked for every sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rollout.engines.base import Generation
from rollout.trajectory import Step


class TokenMismatch(RuntimeError):
    """A sample's ids or log-probs are not the engine's; the run stops, else training would be wrong silently."""


def check_tokens(
    step: Step,
    prompt_ids: Sequence[int],
    generation: Generation,
    *,
    vocab_size: int,
    stop_token_ids: Sequence[int],
    sample: str,
) -> None:
    """Compare a recorded step with what the engine was given (`prompt_ids`) and returned (`generation`).

    Raises:
        TokenMismatch: recorded ids differ from the engine's; log-probs and ids differ in number; a log-prob is not
            finite; an id is outside the vocabulary; a stop token stands anywhere but at the end, or
            the finish reason contradicts the last token. The message starts with `sample`.
    """
    for name, recorded, engine in (
        ("prompt_ids", step.prompt_ids, prompt_ids),
        ("response_ids", step.response_ids, generation.token_ids),
        ("response_logprobs", step.response_logprobs, generation.logprobs),
    ):
        if tuple(recorded) != tuple(engine):
            raise TokenMismatch(f"{sample}: {name} recorded {_excerpt(recorded)}, the engine has {_excerpt(engine)}")
    check_sample(step, vocab_size=vocab_size, stop_token_ids=stop_token_ids, sample=sample)


def check_sample(step: Step, *, vocab_size: int, stop_token_ids: Sequence[int], sample: str) -> None:
    """The part of `check_tokens` that needs only the step: for trajectories read from a file, too."""
    ids = step.response_ids
    if not ids or not step.prompt_ids:
        raise TokenMismatch(f"{sample}: {len(step.prompt_ids)} prompt and {len(ids)} response ids; both must be there")
    if len(ids) != len(step.response_logprobs):
        raise TokenMismatch(f"{sample}: {len(ids)} response ids but {len(step.response_logprobs)} log-probs")
    for token in (min(step.prompt_ids), min(ids), max(step.prompt_ids), max(ids)):
        if not 0 <= token < vocab_size:
            raise TokenMismatch(f"{sample}: id {token} is outside the vocabulary of {vocab_size}")
    if not all(map(math.isfinite, step.response_logprobs)):
        wrong = next(value for value in step.response_logprobs if not math.isfinite(value))
        raise TokenMismatch(f"{sample}: log-prob {wrong} is not finite")
    early = [position for position, token in enumerate(ids[:-1]) if token in stop_token_ids]
    if early:
        raise TokenMismatch(
            f"{sample}: stop token {ids[early[0]]} at position {early[0]} of {len(ids)}, not at the end"
        )
    if (step.finish_reason == "stop") != (ids[-1] in stop_token_ids):
        raise TokenMismatch(f"{sample}: finish reason {step.finish_reason!r}, but the last id is {ids[-1]}")


def _excerpt(values: Sequence[float]) -> str:
    return f"{len(values)} values {list(values[:8])}{'...' if len(values) > 8 else ''}"
