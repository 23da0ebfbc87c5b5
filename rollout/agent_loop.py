"""One episode: a coroutine that alternates between the engine and an environment until the game ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.base import EnvironmentPackage, Observation, Outcome, PromptView, Start, Task
from rollout.engines.base import Engine, EngineError, Generation, Sampling
from rollout.environments import AsyncEnvironment, EnvironmentFault
from rollout.prompt import encode_prompt
from rollout.seeds import stable_seed
from rollout.token_check import check_tokens
from rollout.trajectory import Step, Trajectory, recent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EpisodeSettings:
    """How episodes are played and sampled. `vocab_size` is the model's; ids outside it stop the run."""

    max_steps: int
    history_length: int
    prompt_style: str
    max_prompt_tokens: int
    max_response_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]
    vocab_size: int
    top_p: float = 1.0


async def play_episode(
    task: Task,
    environment: AsyncEnvironment,
    package: EnvironmentPackage,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    settings: EpisodeSettings,
    *,
    uid: str,
    group: str,
    seed: int,
) -> Trajectory:
    """Play one game to its end or to `settings.max_steps`.

    A fault of the environment or the engine ends the episode with `failure` set to "environment: ..." or "engine: ..."
    and the finished steps kept. `uid` is also the engine session. The request of turn t is sampled with a seed derived
    from `seed` and t.

    Raises:
        TokenMismatch: a sample is not what the engine saw and sampled.
    """
    start: Start | None = None
    steps: list[Step] = []
    won = False
    numbers: Mapping[str, float] = {}
    failure = None
    try:
        start = await environment.reset(task)
        observation, done = start.observation, False
        while not done and len(steps) < settings.max_steps:
            view = _view(start.goal, steps, observation, settings.history_length)
            text = package.render_prompt(view, style=settings.prompt_style)
            prompt_ids = encode_prompt(tokenizer, text, settings.max_prompt_tokens)
            sampling = _sampling(settings, stable_seed(seed, len(steps)))
            generation = await engine.generate(prompt_ids, sampling, session=uid)
            if generation.finish_reason == "abort":
                raise EngineError("the request was aborted")
            response = decode_response(tokenizer, generation, settings.stop_token_ids)
            action, valid = package.project_action(response)
            outcome = await environment.step(action)
            step = _record(observation, prompt_ids, generation, response, action, valid, outcome)
            check_tokens(
                step,
                prompt_ids,
                generation,
                vocab_size=settings.vocab_size,
                stop_token_ids=settings.stop_token_ids,
                sample=f"episode {uid} step {len(steps)}",
            )
            steps.append(step)
            observation, done, won = outcome.observation, outcome.done, outcome.done and outcome.won
            numbers = outcome.info
    except EnvironmentFault as fault:
        failure = f"environment: {fault}"
    except EngineError as fault:
        failure = f"engine: {fault}"
    return Trajectory(
        task=task,
        uid=uid,
        group=group,
        goal=start.goal if start else "",
        category=start.category if start else "",
        steps=tuple(steps),
        success=won,
        score=package.success_score(won),
        failure=failure,
        numbers=numbers,
    )


def decode_response(tokenizer: PreTrainedTokenizerBase, generation: Generation, stop_token_ids: tuple[int, ...]) -> str:
    """The response's text for people and environments, without its stop token; other special tokens stay visible."""
    ids = list(generation.token_ids)
    if ids and ids[-1] in stop_token_ids:
        ids.pop()
    return tokenizer.decode(ids, skip_special_tokens=False)


def _view(goal: str, steps: Sequence[Step], observation: Observation, history_length: int) -> PromptView:
    return PromptView(
        goal=goal,
        history=recent(steps, history_length),
        index=len(steps),
        observation=observation.text,
        admissible=observation.admissible,
        affordances=observation.affordances,
    )


def _sampling(settings: EpisodeSettings, seed: int) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        max_tokens=settings.max_response_tokens,
        stop_token_ids=settings.stop_token_ids,
        top_p=settings.top_p,
        seed=seed,
    )


def _record(
    observation: Observation,
    prompt_ids: tuple[int, ...],
    generation: Generation,
    response: str,
    action: str,
    valid: bool,
    outcome: Outcome,
) -> Step:
    return Step(
        observation=observation.text,
        admissible=observation.admissible,
        prompt_ids=prompt_ids,
        response_ids=generation.token_ids,
        response_logprobs=generation.logprobs,
        response=response,
        action=action,
        valid=valid,
        reward=outcome.reward,
        weight_version=generation.weight_version,
        finish_reason=generation.finish_reason,
        affordances=observation.affordances,
    )
