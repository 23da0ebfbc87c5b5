"""Rules on questions that are really asked: what a skill says, and that following it wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs import search
from envs.base import Task
from envs.search.expert import Expert, Noise
from envs.search.prompt import answer_action, information, parse_action, search_action
from megatron_opid.config import SkillsConfig
from megatron_opid.skills.analyzer import make_analyzer
from megatron_opid.skills.search_rules import search_skills
from rollout.trajectory import Trajectory
from tests.skills.episodes import make_step
from tools.demonstrations import play
from tools.prepare_search_qa import write_generated

QUESTION = "Where does the founder of Ostrel live?"
OSTREL = information(['"Ostrel"\nOstrel was founded by Hulmor. Ostrel has its seat in Dulby. Ostrel makes bells.'])
HULMOR = information(['"Hulmor"\nHulmor lives in Koldby. Hulmor was taught by Sima. Hulmor worked as a smith.'])
NOTHING = information([])


def episode(goal: str, *turns: tuple[str, str], success: bool = False) -> Trajectory:
    """`turns`: (observation, action)."""
    steps = tuple(make_step(observation, action) for observation, action in turns)
    return Trajectory(Task("search", 0, 0, "train"), "u", "g", goal, "two_hop", steps, success, float(success))


def test_a_win_gives_its_own_way():
    turns = [(QUESTION, search_action("Ostrel")), (OSTREL, search_action("Hulmor")), (HULMOR, answer_action("Koldby"))]
    skills = search_skills(episode(QUESTION, *turns, success=True), True, 5)
    assert skills.episode == "search Ostrel . then search Hulmor . then answer Koldby ."
    assert skills.steps == {0: "now search Ostrel .", 1: "now search Hulmor .", 2: "now answer Koldby ."}
    assert list(search_skills(episode(QUESTION, *turns, success=True), True, 2).steps) == [0, 1]


def test_a_loss_says_what_would_have_been_right_as_far_as_was_read():
    hasty = episode(QUESTION, (QUESTION, search_action("Ostrel")), (OSTREL, answer_action("Dulby")))
    skills = search_skills(hasty, False, 5)
    assert skills.episode == "search Ostrel . then search Hulmor ."
    assert skills.steps == {1: "now search Hulmor ."}

    wandering = episode(QUESTION, (QUESTION, search_action("live")), (NOTHING, search_action("live")), (NOTHING, ""))
    skills = search_skills(wandering, False, 1)
    assert (skills.episode, skills.steps) == ("search Ostrel .", {0: "now search Ostrel ."})


def test_a_query_of_several_words_is_right_if_it_names_the_thing():
    turns = [(QUESTION, search_action("who founded ostrel?")), (OSTREL, answer_action("the bells"))]
    assert search_skills(episode(QUESTION, *turns), False, 5).steps == {1: "now search Hulmor ."}


def test_questions_in_other_words():
    question, page = "Which river crosses Rome?", information(['"Rome"\nIt lies on the Tiber.'])
    turns = [(question, search_action("Rome")), (page, search_action("Rome")), (page, answer_action("Tiber"))]
    won = search_skills(episode(question, *turns, success=True), True, 5)
    assert won.episode == "search Rome . then answer Tiber ."
    assert won.steps == {0: "now search Rome .", 1: "do not search Rome .", 2: "now answer Tiber ."}
    lost = search_skills(episode(question, *turns[:2], (page, answer_action("Po"))), False, 5)
    assert lost.episode == "do not search Rome . do not answer Po ."
    assert lost.steps == {1: "do not search Rome .", 2: "do not answer Po ."}
    assert search_skills(episode(question, (question, "")), False, 5) is None


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory):
    out: Path = tmp_path_factory.mktemp("search") / "data"
    write_generated(out, seed=1, validation_share=0.2)
    return search.make_environment({"data": str(out), "topk": 2})


class Follower:
    """Does what the step skill says, else what the erring expert does."""

    def __init__(self, skills: dict[int, str], expert: Expert) -> None:
        self._skills = skills
        self._expert = expert

    def act(self, view) -> str:
        action = self._expert.act(view)
        kind, _, words = self._skills.get(view.index, "").removeprefix("now ").removesuffix(" .").partition(" ")
        return {"search": search_action(words), "answer": answer_action(words)}.get(kind, action)


def test_following_the_skills_of_lost_episodes_wins_most_of_them(environment):
    noise, lost, won_later = Noise(careless_query=0.3, hasty_answer=0.6), 0, 0
    for index in range(60):
        task = Task("search", index, 0, "train")
        trajectory = play(environment, task, Expert(index, noise), 4)
        for _ in range(2):  # a skill reaches as far as the episode has read
            if trajectory.success:
                break
            skills = search_skills(trajectory, False, 5)
            lost += 1
            assert all(parse_action(Follower(skills.steps, Expert(0)).act(trajectory.view(0, 0))))
            trajectory = play(environment, task, Follower(skills.steps, Expert(index, Noise())), 4)
        won_later += trajectory.success
    assert lost > 20 and won_later >= 57


async def test_the_analyzer_knows_search():
    analyzer = make_analyzer(SkillsConfig(analyzer="rules"), "search", seed=0, max_prompt_tokens=1)
    assert await analyzer.analyze(episode(QUESTION, (QUESTION, ""))) is not None
    assert await analyzer.analyze(episode(QUESTION)) is None
    assert analyzer.counters()["failures_rules"] == 1
