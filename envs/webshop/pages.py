"""The shop's pages as text, part by part as the official text mode shows them, and what can be clicked on each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from envs.webshop.product import Product

SEPARATOR = " [SEP] "
SEARCH, BACK_TO_SEARCH, PREVIOUS, NEXT, BUY = "search", "back to search", "< prev", "next >", "buy now"
SUB_PAGES = ("description", "features", "reviews")
PRODUCTS_PER_PAGE = 10
_ASCII_SPACES = " \n\t\f\r"
_NO_REVIEWS = "No reviews found"  # the official environment loads none
_HTML_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"})


@dataclass(frozen=True)
class Page:
    """One page. `clickables` are in lower case; `links` maps those that open a product to its number, `options` those
    that choose a value to the option's name."""

    text: str
    clickables: tuple[str, ...]
    has_search_bar: bool = False
    links: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


def search_page(instruction: str) -> Page:
    """Where an episode begins."""
    return Page(_text(["WebShop", "Instruction:", instruction, "Search"]), (SEARCH,), has_search_bar=True)


def results_page(instruction: str, number: int, total: int, products: Sequence[tuple[int, Product]]) -> Page:
    """Page `number` (from 1) of `total` hits, with its (number, product) pairs; a next page always exists."""
    buttons = ["Back to Search", "< Prev", "Next >"] if number > 1 else ["Back to Search", "Next >"]
    parts = ["Instruction:", instruction, buttons[0], f"Page {number} (Total results: {total})", *buttons[1:]]
    for _, product in products:
        parts += [product.asin, product.title, product.price_tag]
    links = {product.asin.lower(): product_number for product_number, product in products}
    return Page(_text(parts), _unique([*map(str.lower, buttons), *links]), links=links)


def item_page(instruction: str, product: Product) -> Page:
    """A product with its options. The page does not show which values are chosen."""
    parts = ["Instruction:", instruction, "Back to Search", "< Prev"]
    for name, values in product.options.items():
        parts += [name, *values]
    parts += [product.title, f"Price: {product.price_tag}", "Rating: N.A."]
    parts += ["Description", "Features", "Reviews", "Buy Now"]
    options = {value: name for name, values in product.options.items() for value in values if value}
    return Page(_text(parts), _unique([BACK_TO_SEARCH, PREVIOUS, *SUB_PAGES, BUY, *options]), options=options)


def sub_page(instruction: str, product: Product, name: str) -> Page:
    """The description, features or reviews of a product."""
    contents = {
        "description": [product.description],
        "features": product.bullet_points,
        "reviews": [_NO_REVIEWS],
    }
    parts = ["Instruction:", instruction, "Back to Search", "< Prev", *contents[name]]
    return Page(_text(parts), (BACK_TO_SEARCH, PREVIOUS))


def done_page(product: Product, options: Mapping[str, str], total: float) -> Page:
    """The receipt of a purchase whose reward is `total`. What the official page leaves empty is empty or None here."""
    chosen = json.dumps(dict(options), sort_keys=True).translate(_HTML_ESCAPES)
    parts = ["Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"]
    parts += ["Purchased", "asin", product.asin, "options", chosen]
    for name in ("attrs", "category", "query", "product category"):
        parts += [name, "None"]
    parts += ["Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category"]
    parts += ["query", "Goal", "None", "Reward", "Your score (min 0.0, max 1.0)", str(total), "Reward Details", "None"]
    return Page(_text(parts), ())


def _text(parts: Iterable[str]) -> str:
    """The parts as the official HTML parser leaves them: no empty ones, blanks stripped.

    A part of blanks alone vanishes if it holds a line break and is an empty part otherwise.
    """
    visible = (part for part in parts if part and (part.strip(_ASCII_SPACES) or "\n" not in part))
    return SEPARATOR.join(part.strip() for part in visible)


def _unique(clickables: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(clickables))
