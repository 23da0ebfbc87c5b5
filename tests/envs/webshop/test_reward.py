"""Every rule of the official reward, one case each, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from envs.webshop.goals import Goal
from envs.webshop.product import Product
from envs.webshop.reward import COLORS, Reward, judge, normalize_color, token_set_ratio
from tests.envs.webshop.shelves import MUG, SHIRT, goal_of

RIGHT = {"color": "navy blue", "size": "large"}


def buy(product: Product = SHIRT, price: float = 25.0, options=RIGHT, goal: Goal | None = None, **flags) -> Reward:
    return judge(product, price, options, goal or goal_of(), **flags)


def test_all_is_right():
    assert buy() == Reward(1.0, 1.0, 1.0, 1, 2, True)


def test_the_share_of_what_was_asked_for():
    assert buy(options={"color": "navy blue"}).total == 3 / 4
    assert buy(options={}).total == 2 / 4
    assert buy(options={}, price=30.01).total == 1 / 4
    assert buy(goal=goal_of(attributes=("long sleeve", "waterproof")), options={}).total == 2 / 5


def test_price_edge():
    assert buy(price=30.0).price_holds and not buy(price=30.000001).price_holds
    assert buy(price=5000.0, goal=goal_of(price_upper=1e6)).price_holds


@pytest.mark.parametrize(
    ("attribute", "found"),
    [
        ("long sleeve", True),  # among the attributes
        ("sleeve long", True),  # in any order
        ("long sleeves", True),  # 96: nearly the same
        ("fit", True),  # a subset of `slim fit`
        ("machine wash", True),  # in a bullet point, lowered
        ("cotton shirt", True),  # in the title, lowered
        ("wash only made of", True),  # across bullet points, joined by blanks
        ("with a pocket", True),  # in the description
        ("Machine Wash", False),  # the goal's own case is not lowered
        ("waterproof", False),
    ],
)
def test_attributes(attribute: str, found: bool):
    assert buy(goal=goal_of(attributes=(attribute,))).num_attributes == found


def test_an_empty_attribute_matches_any_text():
    assert token_set_ratio("", "") == 0
    assert buy(goal=goal_of(attributes=("",))).num_attributes == 1  # "" is in every title


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ("navy blue", "blue"),  # alphabetical, not the first in the text
        ("titanium", "tan"),
        ("hundred", "red"),
        ("fashion black girl01", "ash"),
        ("light red", "light"),
        ("large", "large"),
        ("", ""),
    ],
)
def test_normalize_color(text: str, color: str):
    assert normalize_color(text) == color


def test_colors_are_alphabetical():
    assert list(COLORS) == sorted(COLORS) and len(COLORS) == len(set(COLORS)) == 102


def option_matches(chosen: str, wanted: str, **flags) -> bool:
    goal = goal_of(options=(("color", wanted),))
    return buy(options={"color": chosen}, goal=goal, **flags).num_options == 1


def test_a_named_option_is_compared_as_a_pair():
    assert option_matches("navy blue", "navy blue")  # blue is a word of "('color', 'navy blue')"
    assert option_matches("light blue", "blue light")
    assert option_matches("red", "red")  # equal to a colour: both are reduced
    assert option_matches("large", "large")
    assert not option_matches("large", "small")
    assert option_matches("royal blue", "blue")  # the shade is lost
    assert not option_matches("royal blue", "navy", corrected=False)


def test_some_goals_are_out_of_reach_of_the_official_reward():
    for value in ("fashion black girl01", "r.brown2060", "rectangular"):
        assert not option_matches(value, value)
        assert option_matches(value, value, corrected=True)


def test_a_human_goals_options_have_no_names_and_are_reduced():
    goal = goal_of(options=((None, "navy blue"), (None, "large")))
    assert buy(goal=goal).num_options == 2
    assert buy(goal=goal, options={"color": "royal blue", "size": "large"}).num_options == 2
    assert buy(goal=goal, options={"color": "navy", "size": "large"}).num_options == 1


def test_one_chosen_value_may_serve_two_wanted_ones():
    goal = goal_of(options=(("color", "blue"), ("shade", "blue")))
    assert buy(goal=goal, options={"color": "navy blue"}).num_options == 2


def test_no_options_wanted():
    assert buy(goal=goal_of(options=()), options={}).total == 1.0


def wanted_like(**changes: object) -> Goal:
    return goal_of(product=replace(SHIRT, **changes))


class TestType:
    """r_type: query, categories and title decide, then two rules on the title override them."""

    def of(self, goal: Goal, product: Product = SHIRT) -> tuple[float, float]:
        reward = buy(product, goal=goal)
        return reward.type_score, reward.title_score

    def test_other_query_and_category_but_like_titles(self):
        other = wanted_like(query="x", product_category="y", nouns=("shirt", "a", "b", "c"))
        assert self.of(other) == (1.0, 0.25)

    def test_a_fifth_of_the_title_is_not_enough(self):
        nouns = ("shirt", "a", "b", "c", "d")
        assert self.of(wanted_like(query="x", product_category="y", nouns=nouns)) == (0.5, 0.2)
        assert self.of(wanted_like(product_category="y", nouns=nouns)) == (1.0, 0.2)  # the query is equal
        shared_two = "Men › Shirts › Polo"
        assert self.of(wanted_like(query="x", product_category=shared_two, nouns=nouns)) == (1.0, 0.2)
        shared_one = "Shoes › Men"
        assert self.of(wanted_like(query="x", product_category=shared_one, nouns=nouns)) == (0.5, 0.2)

    def test_less_than_a_tenth_overrides_an_equal_query(self):
        nouns = ("shirt", *"abcdefghij")
        assert self.of(wanted_like(nouns=nouns)) == (0.1, 1 / 11)
        assert self.of(wanted_like(nouns=nouns[:10])) == (1.0, 0.1)  # exactly a tenth is enough

    def test_no_common_noun_is_worth_nothing_even_with_an_equal_query(self):
        assert self.of(wanted_like(nouns=("dress",))) == (0.0, 0.0)
        assert buy(MUG).total == 0.0

    def test_a_title_without_nouns(self):
        assert self.of(wanted_like(nouns=())) == (1.0, 0.2)
        assert self.of(wanted_like(nouns=(), query="x", product_category="y")) == (0.5, 0.2)

    def test_repeated_nouns_count_in_the_wanted_title_only(self):
        assert self.of(wanted_like(nouns=("shirt", "shirt", "shirt", "shirt"))) == (1.0, 0.25)
        double = replace(SHIRT, nouns=("shirt", "shirt"))
        assert self.of(wanted_like(nouns=("shirt", "a")), double) == (1.0, 0.5)

    def test_it_multiplies_the_rest(self):
        nouns = ("shirt", "a", "b", "c", "d")
        assert buy(options={}, goal=wanted_like(query="x", product_category="y", nouns=nouns)).total == 2 / 4 * 0.5


def test_the_ratio_drops_latin_letters_beyond_ascii_and_is_rounded():
    assert token_set_ratio("café au lait", "caf au lait") == 100
    assert token_set_ratio("abcdef", "abcdeg") == 83
