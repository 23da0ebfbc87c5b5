"""Goals: their texts, prices, order and splits."""

import json
from dataclasses import replace
from random import Random

import pytest

from envs.webshop.catalogue import CatalogueFiles
from envs.webshop.goals import HUMAN, NO_UPPER_PRICE, SYNTHETIC, draw_prices, draw_upper_price, list_goals, make_goal
from envs.webshop.options import ShopOptions
from envs.webshop.product import Instruction
from envs.webshop.shop import Shop, open_shop
from tests.envs.webshop.shelves import MUG, SHIRT
from tests.envs.webshop.test_catalogue import item

WISHES = (
    Instruction("i want a shirt..", ("soft",), ("navy blue",)),
    Instruction("nothing", (), ()),
    Instruction("a warm one", ("warm", "soft"), ()),
)


def test_synthetic_goals_are_all_combinations_of_the_options_in_alphabetical_order():
    goals = list_goals([(7, replace(SHIRT, instruction_attributes=("long sleeve",)), 25.0)], SYNTHETIC, Random(0))
    made = [make_goal(SHIRT, int(row["item"]), float(row["price_upper"]), SYNTHETIC) for row in goals]
    assert goals["product"].tolist() == [7] * 4
    assert [goal.options for goal in made] == [
        (("color", color), ("size", size)) for color in ("black", "navy blue") for size in ("8 | 9", "large")
    ]
    assert len({goal.price_upper for goal in made}) == 1  # drawn once for the product
    upper = made[0].price_upper
    assert made[3].text == (
        "Find me long sleeve men's shirts with color: navy blue, and size: large, "
        f"and price lower than {upper:.2f} dollars"
    )
    assert made[3].attributes == ("long sleeve",)


def test_products_without_options_or_instruction():
    plain = replace(MUG, instruction="Find me mugs", instruction_attributes=("dishwasher safe",))
    products = [plain, replace(plain, instruction=None), replace(plain, instruction_attributes=())]
    goals = list_goals([(number, product, 8.0) for number, product in enumerate(products)], SYNTHETIC, Random(0))
    assert goals["product"].tolist() == [0]
    assert make_goal(plain, 0, 20.0, SYNTHETIC).text == "Find me mugs, and price lower than 20.00 dollars"
    assert make_goal(plain, 0, NO_UPPER_PRICE, SYNTHETIC).text == "Find me mugs"


def test_human_goals_lose_their_full_stops_and_need_attributes():
    product = replace(SHIRT, instructions=WISHES)
    goals = list_goals([(3, product, 25.0)], HUMAN, Random(0))
    assert goals["item"].tolist() == [0, 2]
    goal = make_goal(product, 0, 40.0, HUMAN)
    assert goal.text == "i want a shirt, and price lower than 40.00 dollars"
    assert (goal.attributes, goal.options) == (("soft",), ((None, "navy blue"),))


def test_upper_prices():
    rng = Random(0)
    assert {draw_upper_price(25.0, rng) for _ in range(200)} == {40.0, 50.0, 60.0}  # the larger of two of 30 to 60
    assert {draw_upper_price(30.0, rng) for _ in range(200)} == {50.0, 60.0, 70.0}  # above, not at
    assert draw_upper_price(979.0, rng) == 990.0
    assert draw_upper_price(980.0, rng) == draw_upper_price(5000.0, rng) == NO_UPPER_PRICE


def test_prices_are_drawn_as_the_official_environment_draws_them():
    rng = Random(5)
    drawn = draw_prices([(3.0,), (1.0, 2.0), (4.0, 8.0)], Random(5))
    assert drawn.tolist() == [3.0, rng.uniform(1, 2), rng.uniform(4, 8)]


def asked(shop: Shop, split: str) -> list[tuple]:
    goals = [shop.goal(split, index) for index in range(shop.num_goals(split))]
    return [(goal.product.asin, goal.request, goal.attributes, goal.options) for goal in goals]


@pytest.mark.parametrize(("kind", "held_out"), [(SYNTHETIC, 100), (HUMAN, 8)])
def test_splits_are_disjoint_and_fixed_by_the_seed(catalogue, tmp_path, kind: str, held_out: int):
    def open_with(seed: int, cache: str) -> Shop:
        cache_dir = str(tmp_path / cache)
        return open_shop(ShopOptions(str(catalogue), cache_dir, goals=kind, seed=seed, validation_goals=held_out))

    one, again, other = open_with(233, "a"), open_with(233, "b"), open_with(234, "a")
    validation, train = asked(one, "validation"), asked(one, "train")
    assert len(validation) == held_out and len(train) > held_out / 2
    assert not set(validation) & set(train)
    assert (validation, train) == (asked(again, "validation"), asked(again, "train"))
    assert validation != asked(other, "validation")
    assert [one.price(n) for n in range(one.num_products())] != [other.price(n) for n in range(one.num_products())]


def test_a_value_listed_twice_does_not_put_a_goal_on_both_sides(tmp_path):
    values = [{"value": value} for value in ("red", "red", "blue", "blue", "green")]
    products = [item(f"B{number:02d}", customization_options={"color": values}) for number in range(8)]
    entry = {"attributes": ["a"], "instruction": "Find", "instruction_attributes": ["a"]}
    contents = (products, {product["asin"]: entry for product in products}, {})
    for path, content in zip(CatalogueFiles.of(tmp_path, "small").paths, contents, strict=True):
        path.write_text(json.dumps(content))
    shop = open_shop(ShopOptions(str(tmp_path), validation_goals=15))
    validation, train = asked(shop, "validation"), asked(shop, "train")
    assert len(validation) == 15 and len(train) < 40 - 15
    assert not set(validation) & set(train)
