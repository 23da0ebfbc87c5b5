"""What a visit's texts tell, and what they make right."""

import pytest

from envs.webshop.environment import observe
from envs.webshop.facts import Hit, parse_goal, parse_page, wanted_values
from envs.webshop.pages import done_page, item_page, results_page, search_page, sub_page
from envs.webshop.plan import Visit, best_hits, right_actions
from tests.envs.webshop.shelves import MUG, SHIRT, goal_of

TEXT = goal_of().text
GOAL = parse_goal(TEXT)


def facts(page):
    observation = observe(page)
    return parse_page(observation.text, observation.admissible)


@pytest.mark.parametrize(
    ("text", "request_text", "options", "price", "query"),
    [
        (
            TEXT,
            "Find me long sleeve men's shirts",
            {"color": "navy blue", "size": "large"},
            30.0,
            "long sleeve men's shirts",
        ),
        (
            "Find me slim fit shirts with long sleeve with fit type: men, and size: 8 | 9",
            "Find me slim fit shirts with long sleeve",
            {"fit type": "men", "size": "8 | 9"},
            None,
            "slim fit shirts long sleeve",
        ),
        (
            "i need a mug with a handle, and price lower than 20.00 dollars",
            "i need a mug with a handle",
            {},
            20.0,
            "mug handle",
        ),
    ],
)
def test_goals(text, request_text, options, price, query):
    goal = parse_goal(text)
    assert (goal.request, goal.options, goal.price_upper, goal.query) == (request_text, options, price, query)


def test_pages():
    assert facts(search_page(TEXT)).kind == "search"
    assert facts(done_page(SHIRT, {}, 1.0)).kind == "done"
    results = facts(results_page(TEXT, 3, 22, [(0, SHIRT), (1, MUG)]))
    assert (results.kind, results.number) == ("results", 3)
    assert results.hits == (
        Hit("b01shirt01", "Acme Cotton Shirt for Men", 19.99, 29.99),
        Hit("b02mug0002", "Steel Mug", 8.0, 8.0),
    )
    assert facts(results_page(TEXT, 6, 50, [])).hits == ()
    item = facts(item_page(TEXT, SHIRT))
    assert (item.kind, item.title, item.low, item.high) == ("item", SHIRT.title, 19.99, 29.99)
    assert item.options == SHIRT.options
    assert facts(item_page(TEXT, MUG)).options == {}
    sub = facts(sub_page(TEXT, SHIRT, "features"))
    assert (sub.kind, sub.parts) == ("sub", SHIRT.bullet_points)


def test_wanted_values():
    assert wanted_values(GOAL, SHIRT.options) == {"color": "navy blue", "size": "large"}
    assert wanted_values(GOAL, {"color": ("navy",), "size": ("large",)}) == {"size": "large"}
    human = parse_goal("i want a navy blue shirt in size 8 | 9, and price lower than 30.00 dollars")
    assert wanted_values(human, {"color": ("blue", "navy blue"), "size": ("8 | 9", "8")}) == {
        "color": "navy blue",
        "size": "8 | 9",
    }


def test_best_hits():
    hits = [
        Hit("a", "Long Sleeve Shirt for Men's", 25.0, 60.0),
        Hit("b", "Long Sleeve Shirts Men's", 20.0, 25.0),
        Hit("c", "Long Sleeve Shirt Men's", 31.0, 31.0),
        Hit("d", "Shirt", 5.0, 5.0),
    ]
    assert [hit.asin for hit in best_hits(GOAL, hits)] == ["b"]  # surely cheap enough
    assert [hit.asin for hit in best_hits(GOAL, hits, rejected=["b"])] == ["a"]
    assert best_hits(GOAL, hits[2:3]) == []


def test_a_visit_step_by_step():
    visit = Visit()

    def step(page, before: str) -> list[str]:
        visit.read(facts(page), before, GOAL)
        return right_actions(GOAL, visit, facts(page))

    results = results_page(TEXT, 1, 2, [(0, SHIRT), (1, MUG)])
    assert step(search_page(TEXT), "") == ["search[long sleeve men's shirts]"]
    assert step(results, "search[x]") == ["click[b01shirt01]"]
    item = item_page(TEXT, SHIRT)
    assert step(item, "click[b01shirt01]") == ["click[navy blue]", "click[large]"]
    assert step(item, "click[black]") == ["click[navy blue]", "click[large]"]
    assert step(sub_page(TEXT, SHIRT, "reviews"), "click[reviews]") == ["click[< prev]"]
    assert step(item, "click[< prev]") == ["click[navy blue]", "click[large]"]
    assert step(item, "click[navy blue]") == ["click[large]"]
    assert step(item, "click[large]") == ["click[buy now]"]
    assert step(results, "click[< prev]") == ["click[b01shirt01]"]
    assert visit.chosen == {} and visit.item == ""
    assert step(item_page(TEXT, MUG), "click[b02mug0002]") == ["click[< prev]"]  # it has no colours
    assert visit.rejected == ["b02mug0002"]
    assert step(results_page(TEXT, 1, 1, [(1, MUG)]), "click[< prev]") == ["click[next >]"]
    assert step(results_page(TEXT, 2, 1, [(1, MUG)]), "click[next >]") == ["click[back to search]"]
