"""A product of the shop, and its form on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Instruction(NamedTuple):
    """A person's wish for a product, from items_human_ins.json."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """A product as the shop shows and judges it.

    `price_tag` is what pages show, `prices` are its one or two numbers in dollars. `options` maps an option's name to
    its values, both in lower case. `instruction` (None if there is none) and `instruction_attributes` are the
    synthetic goals', `instructions` the human ones'. `nouns` are those of the title, with repetitions.
    """

    asin: str
    title: str
    description: str
    bullet_points: tuple[str, ...]
    price_tag: str
    prices: tuple[float, ...]
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str
    instruction: str | None
    instruction_attributes: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    nouns: tuple[str, ...] = ()


_FIELDS = tuple(Product.__dataclass_fields__)


def index_text(product: Product) -> str:
    """What the search engine indexes of a product."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    first_bullet = product.bullet_points[0] if product.bullet_points else ""
    return f"{product.title} {product.description} {first_bullet} {options}".lower()


def dump_product(product: Product) -> list[Any]:
    """A product as JSON can hold it: its fields in order."""
    return [getattr(product, name) for name in _FIELDS]


def load_product(fields: Sequence[Any]) -> Product:
    """The inverse of `dump_product` after a way through JSON, which knows no tuples."""
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in zip(_FIELDS, fields, strict=True)
    }
    values["options"] = {name: tuple(choices) for name, choices in values["options"].items()}
    values["instructions"] = tuple(
        Instruction(text, tuple(attributes), tuple(options)) for text, attributes, options in values["instructions"]
    )
    return Product(**values)
