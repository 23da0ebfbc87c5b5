"""Rules that write skills for question answering in the agent's own words, short enough for a tiny model to read.

They know what the episode showed: queries, the documents found, and whether the answer was right. An episode skill is
the way to the answer: `search Ostrel . then search Hulmor . then answer Koldby .` Of a generated question (envs/search/
facts.py) that way follows from the documents also where the agent lost it; of any other question it is what a right
answer was reached by, and after a wrong one what not to do again. A step skill names one action: `now search Hulmor .`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from envs.search.answers import is_exact_match, normalize
from envs.search.facts import Chain, Fact, parse_question
from envs.search.plan import ANSWER, SEARCH, facts_of, next_action, plan
from envs.search.prompt import documents_of, parse_action
from rollout.trajectory import HindsightSkills, Step, Trajectory

# Which critical steps come first when there are more than may get a skill.
_MISSED, _IN_VAIN, _DECISIVE = range(3)


@dataclass(frozen=True)
class Played:
    """One step as the rules read it. `kind` is "" for what is no action; `found` what a search brought that no earlier
    one had; `known` the facts that were known when the action was chosen."""

    kind: str
    words: str
    found: frozenset[str]
    known: tuple[Fact, ...]


def search_skills(trajectory: Trajectory, success: bool, max_step_skills: int) -> HindsightSkills | None:
    """Skills from what the episode showed; None if it showed nothing that could help."""
    if not trajectory.steps:
        return None
    chain, played = parse_question(trajectory.goal), _read(trajectory.steps)
    last_facts = tuple(fact for step in trajectory.steps for fact in facts_of(step.observation))
    sentences = _way(plan(chain, last_facts)) if chain else _history(played, success)
    steps = _step_skills(chain, played, success, max_step_skills)
    if not sentences:
        return None
    summary = f"{'won' if success else 'lost'} after {len(played)} steps: {trajectory.goal}"
    return HindsightSkills(summary, " ".join(sentences), steps)


def _read(steps: Sequence[Step]) -> list[Played]:
    brought = [step.observation for step in steps[1:]] + [""]
    read: set[str] = set()
    known: tuple[Fact, ...] = ()
    played = []
    for step, answer in zip(steps, brought, strict=True):
        known += tuple(facts_of(step.observation))
        found = frozenset(title for title, _ in documents_of(answer)) - read
        read |= found
        played.append(Played(*parse_action(step.action), found, known))
    return played


def _way(actions: Sequence[tuple[str, str]]) -> list[str]:
    """`search x .`, `then search y .`, ..."""
    return [f"{'then ' if number else ''}{kind} {words} ." for number, (kind, words) in enumerate(actions)]


def _history(played: Sequence[Played], success: bool) -> list[str]:
    """The searches that found something new and the right answer; of a lost episode what was in vain, once each."""
    if success:
        return _way([(step.kind, step.words) for step in played if step.found or step.kind == ANSWER])
    vain = [step for step in played if step.kind == ANSWER or (step.kind == SEARCH and not step.found)]
    return list(dict.fromkeys(f"do not {step.kind} {step.words} ." for step in vain))


def _step_skills(chain: Chain | None, played: Sequence[Played], success: bool, max_step_skills: int) -> dict[int, str]:
    """Skills of the most critical steps. Of a mistake repeated in a loop the first time counts most."""
    repeats: Counter[str] = Counter()
    critical = []
    for index, step in enumerate(played):
        judged = _judge_by_facts(chain, step, success) if chain else _judge_by_outcome(step, success)
        if judged is not None:
            rank, text = judged
            critical.append((repeats[text], rank, index, text))
            repeats[text] += 1
    chosen = sorted(critical)[:max_step_skills]
    return dict(sorted((index, text) for _, _, index, text in chosen))


def _judge_by_facts(chain: Chain, step: Played, success: bool) -> tuple[int, str] | None:
    """(rank, skill) of a step that was not the next one of the way, or that won."""
    kind, words = next_action(chain, step.known)
    text = f"now {kind} {words} ."
    if kind == ANSWER:
        is_right = step.kind == ANSWER and is_exact_match(step.words, [words])
    else:
        is_right = step.kind == SEARCH and normalize(words) in normalize(step.words).split()
    if not is_right:
        return _MISSED, text
    return (_DECISIVE, text) if success else None


def _judge_by_outcome(step: Played, success: bool) -> tuple[int, str] | None:
    """(rank, skill) of a search that found nothing new, of the answer, and on a success of every useful search."""
    if step.kind == SEARCH and not step.found:
        return _IN_VAIN, f"do not search {step.words} ."
    if step.kind == ANSWER and not success:
        return _MISSED, f"do not answer {step.words} ."
    return (_DECISIVE, f"now {step.kind} {step.words} .") if success and step.kind else None
