"""The analyzer protocol: a finished episode in, its hindsight skills out; and the factory that picks a back end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron_opid.config import SkillsConfig
from megatron_opid.skills.cache import ReplyCache
from megatron_opid.skills.chat_analyzer import ChatAnalyzer
from megatron_opid.skills.endpoint import Endpoint
from megatron_opid.skills.openai_analyzer import EndpointModel
from megatron_opid.skills.policy_analyzer import PolicyModel
from megatron_opid.skills.rules import RulesAnalyzer
from rollout.engines.base import Engine
from rollout.trajectory import HindsightSkills, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Analyzer(Protocol):
    """Writes the skills of finished episodes. All calls of one analyzer come from one event loop."""

    async def analyze(self, trajectory: Trajectory) -> HindsightSkills | None:
        """The episode's skills, or None when the analysis failed: then it gets no teacher term, and a counter rises."""
        ...

    def counters(self) -> dict[str, float]:
        """Counts, tokens and seconds since the previous call, under the keys of `counters.AnalysisCounters`."""
        ...

    async def close(self) -> None: ...


def make_analyzer(
    config: SkillsConfig,
    env: str,
    *,
    seed: int,
    max_prompt_tokens: int,
    engine: Engine | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Analyzer | None:
    """The analyzer that `config.analyzer` names; None for `none`.

    `engine`, `tokenizer`, `seed` and `max_prompt_tokens` (of the analyzer's own prompt) serve the back end `policy`;
    `openai` reads its endpoint from the environment variables of `endpoint.Endpoint`.

    Raises:
        ConfigError: environment variables of the endpoint are unset or wrong.
        ValueError: an unknown analyzer, no rules for `env`, or `policy` without an engine and a tokenizer.
    """
    match config.analyzer:
        case "none":
            return None
        case "rules":
            return RulesAnalyzer(env, config.max_step_skills, config.success_threshold)
        case "openai":
            model = EndpointModel(
                Endpoint.from_environment(os.environ),
                concurrency=config.concurrency,
                timeout_s=config.timeout_s,
                max_completion_tokens=config.max_completion_tokens,
            )
            cache = ReplyCache(Path(config.cache_dir)) if config.cache_dir else None
            return ChatAnalyzer(model, config.max_step_skills, config.success_threshold, cache=cache)
        case "policy":
            if engine is None or tokenizer is None:
                raise ValueError("skills.analyzer=policy needs the rollout's engine and tokenizer")
            model = PolicyModel(
                engine,
                tokenizer,
                max_prompt_tokens=max_prompt_tokens,
                max_completion_tokens=config.max_completion_tokens,
                timeout_s=config.timeout_s,
                seed=seed,
            )
            return ChatAnalyzer(model, config.max_step_skills, config.success_threshold)
    raise ValueError(f"skills.analyzer={config.analyzer!r} is unknown; set openai, policy, rules or none")
