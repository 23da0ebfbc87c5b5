"""The expert wins from observations alone, errs as told, and repeats itself under a seed."""

import pytest

from envs.alfworld import make_environment, num_tasks
from envs.alfworld.expert import Expert, Noise
from envs.base import PromptView, Task


def play(data, split, index, expert, max_steps):
    """Play one game; returns its actions, its answers, and whether it was won."""
    environment = make_environment({"engine": "native", "data": str(data)})
    start = environment.reset(Task("alfworld", index, 0, split))
    observation, actions, answers, won = start.observation, [], [], False
    while not won and len(actions) < max_steps:
        view = PromptView(start.goal, (), len(actions), observation.text, observation.admissible)
        actions.append(expert.act(view))
        outcome = environment.step(actions[-1])
        observation, won = outcome.observation, outcome.won
        answers.append(observation.text)
    return actions, answers, won


def play_all(data, split, noise, max_steps, seed=0):
    expert = Expert(seed, noise)
    count = num_tasks(split, {"data": str(data)})
    return [play(data, split, index, expert, max_steps) for index in range(count)]


def test_wins_every_small_game(small_games):
    for split in ("train", "valid_unseen"):
        episodes = play_all(small_games, split, Noise(), max_steps=20)
        assert all(won for _, _, won in episodes)
        assert all("Nothing happens." not in answers for _, answers, _ in episodes)
        assert sum(len(actions) for actions, _, _ in episodes) / len(episodes) < 10


def test_wins_games_of_whole_rooms_given_time_to_search(large_games):
    assert all(won for _, _, won in play_all(large_games, "train", Noise(), max_steps=80))


def test_recovers_from_random_actions(small_games):
    assert all(won for _, _, won in play_all(small_games, "train", Noise(random_action=0.4), max_steps=200))


def test_invalid_actions_do_nothing(small_games):
    episodes = play_all(small_games, "train", Noise(invalid_action=0.3), max_steps=60)
    answers = [answer for _, answers, _ in episodes for answer in answers]
    assert 0.15 < answers.count("Nothing happens.") / len(answers) < 0.45


def test_forgetting_delivers_the_object_unprocessed(small_games):
    remembering = play_all(small_games, "train", Noise(), max_steps=20)
    forgetting = play_all(small_games, "train", Noise(forget_processing=1.0), max_steps=20)
    processed = [bool({"clean", "heat", "cool"} & {a.split()[0] for a in actions}) for actions, _, _ in remembering]
    assert 0 < sum(processed) < len(processed)
    for needs_processing, (actions, _, won) in zip(processed, forgetting, strict=True):
        assert won != needs_processing
        assert any(action.split()[0] in ("move", "use") for action in actions)


def test_same_seed_same_actions(small_games):
    noise = Noise(random_action=0.3, invalid_action=0.1, forget_processing=0.5)
    first, second, other = (play_all(small_games, "train", noise, 30, seed=seed) for seed in (1, 1, 2))
    assert first == second != other


def test_a_goal_in_free_words_is_refused():
    view = PromptView("tidy up the room", (), 0, "", ("look",))
    with pytest.raises(ValueError, match="does not understand the goal 'tidy up the room'"):
        Expert(0).act(view)
