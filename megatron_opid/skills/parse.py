"""A language model's answer about an episode, read as tolerantly as is safe."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import json_repair

from megatron_opid.skills.counters import AnalysisError
from rollout.trajectory import HindsightSkills

SCHEMA = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "episode_skill": {"type": "string"},
        "step_skills": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"step": {"type": "integer"}, "skill": {"type": "string"}},
                "required": ["step", "skill"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["summary", "episode_skill", "step_skills"],
    "additionalProperties": False,
}

# A skill that fills the prompt would push the task itself out on the left; such a text is no advice.
MAX_SKILL_CHARACTERS = 4000
MAX_REPLY_CHARACTERS = 50_000

# Put behind a torn answer before it is repaired: the string that ends with it is the one that was cut off.
_TEAR = "\ue000"


class ParseError(AnalysisError):
    """The answer holds no usable skills; the message says why."""

    def __init__(self, reason: str):
        super().__init__("unparseable", reason)


@dataclass(frozen=True)
class ParsedReply:
    """The skills of an answer and how many of its step entries were refused."""

    skills: HindsightSkills
    num_dropped: int


def parse_reply(text: str, num_steps: int, max_step_skills: int) -> ParsedReply:
    """Skills for an episode of `num_steps` steps (indices 0-based).

    Prose and code fences around the object, a missing end, single quotes and trailing commas are put up with. A step
    entry is dropped and counted when its index is unknown, repeated or no integer, when its text is blank, over-long or
    cut off, or when `max_step_skills` were taken already.

    Raises:
        ParseError: no object with an `episode_skill`, an episode skill that is blank, over-long or cut off, or a field
            of the wrong type. Nothing else is raised, whatever the text.
    """
    if len(text) > MAX_REPLY_CHARACTERS:
        raise ParseError(f"the answer has {len(text)} characters, more than {MAX_REPLY_CHARACTERS}")
    data = _find_object(text)
    summary = data.get("summary")
    entries = data.get("step_skills")
    episode = _clean(data["episode_skill"])
    if episode is None:
        raise ParseError("episode_skill is not a text, blank, too long or cut off")
    if entries is not None and not isinstance(entries, list):
        raise ParseError(f"step_skills is {type(entries).__name__}, not a list")
    steps = _read_steps(entries or [], num_steps, max_step_skills)
    skills = HindsightSkills(summary=_clean(summary) or "", episode=episode, steps=steps)
    return ParsedReply(skills, num_dropped=len(entries or []) - len(steps))


def _read_steps(entries: list[Any], num_steps: int, max_step_skills: int) -> dict[int, str]:
    steps: dict[int, str] = {}
    for entry in entries:
        if len(steps) == max_step_skills:
            break
        if not isinstance(entry, dict):
            continue
        index, skill = _index(entry.get("step")), _clean(entry.get("skill"))
        if index is not None and skill is not None and 0 <= index < num_steps and index not in steps:
            steps[index] = skill
    return steps


def _index(value: Any) -> int | None:
    """An integer, or what is plainly meant as one: 3.0 or "3"."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer() or isinstance(value, int):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,6}\s*", value):
        return int(value)
    return None


def _clean(value: Any) -> str | None:
    """The text less surrounding blanks and lone surrogates (no tokenizer takes those); None if it is unusable."""
    if not isinstance(value, str) or value.endswith(_TEAR):
        return None
    text = value.encode("utf-8", "ignore").decode("utf-8").strip()
    return text if 0 < len(text) <= MAX_SKILL_CHARACTERS else None


def _find_object(text: str) -> dict[str, Any]:
    """The last complete JSON object with an episode skill, else what repair makes of the first broken one."""
    text = text.replace(_TEAR, "")
    starts = [match.start() for match in re.finditer(r'\{\s*"', text)]
    found = [data for start in starts if (data := _decode(text, start)) is not None]
    if found:
        return found[-1]
    key = text.find("episode_skill")
    for start in (text.find("{"), text.rfind("{", 0, max(key, 0))):
        if key >= 0 and start >= 0 and (data := _repair(text[start:])) is not None:
            return data
    raise ParseError(f"no JSON object with an episode_skill in an answer of {len(text)} characters")


def _decode(text: str, start: int) -> dict[str, Any] | None:
    try:
        data, _ = json.JSONDecoder().raw_decode(text, start)
    except RecursionError:
        # Every later start would fail as slowly: a babbling model must not hold up the other episodes.
        raise ParseError("the answer is nested too deeply") from None
    except ValueError:
        return None
    return _skills_object(data)


def _repair(text: str) -> dict[str, Any] | None:
    try:
        data = json_repair.loads(text + _TEAR)
    except (ValueError, RecursionError):
        return None
    return _skills_object(data)


def _skills_object(data: Any) -> dict[str, Any] | None:
    return data if isinstance(data, dict) and "episode_skill" in data else None
