"""What is asked for: a goal is a product's instruction, one combination of its options, and an upper price.

Prices and goals are drawn once, from one seed, for every process and split. Goals are kept as numbers of products and
of their instructions or combinations, and put into words when they are played.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from envs.webshop.product import Product

SYNTHETIC, HUMAN = "synthetic", "human"
NO_UPPER_PRICE = 1e6
_PRICE_STEPS = tuple(10.0 * step for step in range(1, 100))
_STEPS_ABOVE = 4  # the upper price is one of the first four multiples of 10 above the price

# `item` is the number of the human instruction, or of the combination of option values.
GOAL = np.dtype([("product", np.int64), ("item", np.int64), ("price_upper", np.float64)])


@dataclass(frozen=True)
class Goal:
    """What the reward compares a purchase with.

    `request` is the instruction without its price clause. `options` are (name, value) pairs; a human goal's have no
    names. `price_upper` in dollars.
    """

    product: Product
    request: str
    attributes: tuple[str, ...]
    options: tuple[tuple[str | None, str], ...]
    price_upper: float

    @property
    def text(self) -> str:
        """The instruction that the shop shows."""
        if self.price_upper == NO_UPPER_PRICE:
            return self.request
        return f"{self.request}, and price lower than {self.price_upper:.2f} dollars"


def draw_prices(prices: Iterable[Sequence[float]], rng: Random) -> NDArray[np.float64]:
    """[products] dollars: of a product with two prices something in between."""
    return np.array([pair[0] if len(pair) == 1 else rng.uniform(*pair) for pair in prices])


def draw_upper_price(price: float, rng: Random) -> float:
    """A random multiple of 10 dollars above `price`, the larger of two draws; NO_UPPER_PRICE from 980 dollars on."""
    steps = [step for step in _PRICE_STEPS if step > price][:_STEPS_ABOVE]
    return max(rng.sample(steps, 2)) if len(steps) >= 2 else NO_UPPER_PRICE


def list_goals(products: Iterable[tuple[int, Product, float]], kind: str, rng: Random) -> NDArray:
    """[goals] of dtype GOAL for (number, product, price) triples.

    Human goals draw an upper price each, the synthetic ones of a product share theirs. Goals without attributes are
    left out.
    """
    numbers, items, uppers = array("q"), array("q"), array("d")  # the full catalogue has millions of combinations
    for number, product, price in products:
        if kind == HUMAN:
            asked = [item for item, wish in enumerate(product.instructions) if wish.attributes]
            drawn = [draw_upper_price(price, rng) for _ in asked]
        elif product.instruction is not None and product.instruction_attributes:
            asked = range(math.prod(_option_sizes(product)))
            drawn = [draw_upper_price(price, rng)] * len(asked)
        else:
            continue
        numbers.extend([number] * len(asked))
        items.extend(asked)
        uppers.extend(drawn)
    goals = np.empty(len(numbers), dtype=GOAL)
    goals["product"], goals["item"], goals["price_upper"] = numbers, items, uppers
    return goals


def make_goal(product: Product, item: int, price_upper: float, kind: str) -> Goal:
    """The goal that a row of `list_goals` stands for."""
    if kind == HUMAN:
        wish = product.instructions[item]
        options = tuple((None, value) for value in wish.options)
        return Goal(product, wish.text.strip("."), wish.attributes, options, price_upper)
    names = sorted(product.options)
    chosen = np.unravel_index(item, _option_sizes(product)) if names else ()
    options = tuple((name, product.options[name][index]) for name, index in zip(names, chosen, strict=True))
    option_text = " with " + ", and ".join(f"{name}: {value}" for name, value in options) if options else ""
    return Goal(product, f"{product.instruction}{option_text}", product.instruction_attributes, options, price_upper)


def shuffled(num_goals: int, seed: int) -> NDArray[np.int64]:
    """[goals] the order in which goals are dealt to the splits; seed 233 is the official one."""
    order = list(range(num_goals))
    Random(seed).shuffle(order)
    return np.array(order, dtype=np.int64)


def _option_sizes(product: Product) -> tuple[int, ...]:
    """How many values each option has, options in alphabetical order; the last one varies fastest among goals."""
    return tuple(len(product.options[name]) for name in sorted(product.options))
