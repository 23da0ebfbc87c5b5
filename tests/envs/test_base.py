"""What all environments share."""

import pytest

from envs.base import is_admissible, load

OFFERED = ("search[<your query>]", "click[< prev]", "click[next >]", "look")


@pytest.mark.parametrize("action", ["search[red shoes]", "search[a]", "click[< prev]", "click[next >]", "look"])
def test_offered_actions_and_free_text_in_its_place(action):
    assert is_admissible(action, OFFERED)


@pytest.mark.parametrize("action", ["search[]", "search", "search[red", "find[red]", "click[b]", "", "look around"])
def test_anything_else_is_not_offered(action):
    assert not is_admissible(action, OFFERED)
    assert not is_admissible(action, ())


def test_an_unknown_environment_is_told_which_there_are():
    with pytest.raises(ValueError, match="'alfwrld' .* one of alfworld, sciworld, search, webshop$"):
        load("alfwrld")
