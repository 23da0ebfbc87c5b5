from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from megatron_opid.config import SkillsConfig
from megatron_opid.skills.analyzer import make_analyzer
from rollout.engines.base import EngineError, Generation, Sampling
from rollout.trajectory import HindsightSkills
from tests.skills.endpoint_server import GOOD
from tests.skills.episodes import make_trajectory
from tests.skills.tokenizers import make_tokenizer

TOKENIZER = make_tokenizer()


class ScriptedEngine:
    """Answers every request with `text`, after `delay_s`; keeps the requests."""

    def __init__(self, text: str, delay_s: float = 0.0, error: Exception | None = None):
        self.text, self.delay_s, self.error = text, delay_s, error
        self.requests: list[tuple[Sequence[int], Sampling, str]] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        self.requests.append((prompt_ids, sampling, session))
        await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error
        ids = tuple(TOKENIZER(self.text + "<|im_end|>", add_special_tokens=False)["input_ids"])
        return Generation(ids, (0.0,) * len(ids), "stop", 0)


def make(engine: ScriptedEngine, *, max_prompt_tokens: int = 5000, **config):
    config = SkillsConfig(analyzer="policy", max_step_skills=3, max_completion_tokens=77, **config)
    options = {"seed": 1, "max_prompt_tokens": max_prompt_tokens, "engine": engine, "tokenizer": TOKENIZER}
    return make_analyzer(config, "toy", **options)


async def test_the_engine_writes_the_skills():
    engine = ScriptedEngine(GOOD)
    analyzer = make(engine)
    assert await analyzer.analyze(make_trajectory()) == HindsightSkills("s", "open the door .", {1: "turn left ."})
    (prompt_ids, sampling, _), counters = engine.requests[0], analyzer.counters()
    prompt = TOKENIZER.decode(prompt_ids)
    assert prompt.startswith("<|im_start|>system") and "Step 2" in prompt and prompt.endswith("<think></think>")
    assert sampling.max_tokens == 77 and sampling.stop_token_ids == (TOKENIZER.eos_token_id,)
    assert counters["prompt_tokens"] == len(prompt_ids)
    assert counters["completion_tokens"] == len(GOOD) + 1
    assert counters["failures"] == 0


async def test_draws_are_repeatable_and_differ_between_episodes():
    engine = ScriptedEngine(GOOD)
    for uid in ("a", "a", "b"):
        await make(engine).analyze(make_trajectory(uid=uid))
    seeds = [sampling.seed for _, sampling, _ in engine.requests]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    "engine, options, cause",
    [
        (ScriptedEngine("no idea"), {}, "unparseable"),
        (ScriptedEngine(GOOD, error=EngineError("dead")), {}, "engine"),
        (ScriptedEngine(GOOD, delay_s=5.0), {"timeout_s": 0.05}, "timeout"),
        (ScriptedEngine(GOOD), {"max_prompt_tokens": 100}, "too_long"),
    ],
    ids=["unparseable", "engine", "timeout", "too long"],
)
async def test_failures_are_counted(engine: ScriptedEngine, options: dict, cause: str):
    analyzer = make(engine, **options)
    assert await analyzer.analyze(make_trajectory()) is None
    counters = analyzer.counters()
    assert counters[f"failures_{cause}"] == counters["failures"] == 1
    assert analyzer.counters()["failures"] == 0  # counted once


def test_factory():
    options = {"seed": 0, "max_prompt_tokens": 100}
    assert make_analyzer(SkillsConfig(analyzer="none"), "toy", **options) is None
    with pytest.raises(ValueError, match="skills.analyzer=policy needs"):
        make_analyzer(SkillsConfig(analyzer="policy"), "toy", **options)
    with pytest.raises(ValueError, match="knows no rules for env.name='toy', only for alfworld"):
        make_analyzer(SkillsConfig(analyzer="rules"), "toy", **options)
