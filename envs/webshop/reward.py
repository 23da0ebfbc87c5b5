"""The official reward of a purchase.

    total = r_type * (attributes found + options matched + price held) / (attributes + options + 1)

Its quirks are kept: too few common nouns override everything else, and colours are compared by the first colour name
in alphabetical order that is somewhere in the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rapidfuzz import fuzz, utils

from envs.webshop.goals import Goal
from envs.webshop.product import Product

MATCH = 85  # two texts count as equal above this token set ratio, a whole number from 0 to 100
# Alphabetical, and searched in this order: "navy blue" is blue, "titanium" is tan, "hundred" is red.
COLORS = tuple((Path(__file__).parent / "data" / "colors.txt").read_text().split())
_NOT_ASCII = dict.fromkeys(range(128, 256))
_CATEGORY_SEPARATOR = "›"


@dataclass(frozen=True)
class Reward:
    """The score of a purchase, 0 to 1, and what it is made of; `num_...` count what matched."""

    total: float
    type_score: float
    title_score: float
    num_attributes: int
    num_options: int
    price_holds: bool


def judge(product: Product, price: float, options: Mapping[str, str], goal: Goal, *, corrected: bool = False) -> Reward:
    """The reward for buying `product` at `price` dollars with `options` (name -> value) under `goal`.

    `corrected` compares a synthetic goal's option values as it does a human goal's. The official reward compares pairs
    of name and value, whose colours are not reduced, so that some goals are out of reach even for one who buys just
    what they ask for.
    """
    type_score, title_score = _type_scores(product, goal.product)
    num_attributes = sum(_has_attribute(product, attribute) for attribute in goal.attributes)
    num_options = _num_matching_options(options.values(), goal, corrected)
    price_holds = price <= goal.price_upper
    found = num_attributes + num_options + price_holds
    total = found / (len(goal.attributes) + len(goal.options) + 1) * type_score
    return Reward(total, type_score, title_score, num_attributes, num_options, price_holds)


def token_set_ratio(first: str, second: str) -> int:
    """thefuzz's score of two texts, 0 to 100: Latin-1 letters beyond ASCII are dropped, the rest compared as words."""
    texts = (first.translate(_NOT_ASCII), second.translate(_NOT_ASCII))
    return round(fuzz.token_set_ratio(*texts, processor=utils.default_process))


def normalize_color(text: str) -> str:
    """The first of COLORS that is anywhere in `text`, else `text` itself."""
    return next((color for color in COLORS if color in text), text)


def _type_scores(product: Product, wanted: Product) -> tuple[float, float]:
    """(r_type, title score). A title without nouns scores 0.2."""
    common = len(set(product.nouns) & set(wanted.nouns))
    title_score = common / len(wanted.nouns) if wanted.nouns else 0.2
    if title_score == 0:
        return 0.0, title_score
    if title_score < 0.1:
        return 0.1, title_score
    is_alike = (
        product.query == wanted.query or len(_categories(product) & _categories(wanted)) >= 2 or title_score > 0.2
    )
    return (1.0 if is_alike else 0.5), title_score


def _categories(product: Product) -> set[str]:
    return {part.strip() for part in product.product_category.split(_CATEGORY_SEPARATOR)}


def _has_attribute(product: Product, attribute: str) -> bool:
    """Whether the product lists something like `attribute`, or its texts, in lower case, contain it as it is."""
    if any(token_set_ratio(own, attribute) > MATCH for own in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullet_points), product.description)
    return any(attribute in text.lower() for text in texts)


def _num_matching_options(chosen: Iterable[str], goal: Goal, corrected: bool) -> int:
    colors = [normalize_color(value) for value in chosen]
    wanted = [_comparable(name, value, corrected) for name, value in goal.options]
    return sum(any(token_set_ratio(color, text) > MATCH for color in colors) for text in wanted)


def _comparable(name: str | None, value: str, corrected: bool) -> str:
    """A wanted option as the official reward compares it: a named one as the text of a Python pair."""
    if name is None or corrected:
        return normalize_color(value)
    # A colour is looked for in the pair itself, where only a whole name or value can be equal to it.
    return next((color for color in COLORS if color in (name, value)), str((name, value)))
