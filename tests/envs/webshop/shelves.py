"""Hand-made products, goals and a shop of them in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from envs.webshop.goals import Goal
from envs.webshop.product import Product

SHIRT = Product(
    asin="B01SHIRT01",
    title="Acme Cotton Shirt for Men",
    description="A shirt with a pocket.",
    bullet_points=("Machine Wash only", "Made of soft cotton"),
    price_tag="$19.99 to $29.99",
    prices=(19.99, 29.99),
    options={"color": ("black", "navy blue"), "size": ("8 | 9", "large")},
    attributes=("long sleeve", "slim fit"),
    category="fashion",
    query="men's shirts",
    product_category="Clothing › Men › Shirts",
    instruction="Find me long sleeve men's shirts",
    instruction_attributes=("long sleeve",),
    instructions=(),
    nouns=("acme", "cotton", "shirt", "men"),
)
MUG = replace(
    SHIRT,
    asin="B02MUG0002",
    title="Steel Mug",
    description="",
    bullet_points=(),
    price_tag="$8.0",
    prices=(8.0,),
    options={},
    attributes=("dishwasher safe",),
    category="garden",
    query="mugs",
    product_category="Kitchen › Cups › Mugs",
    nouns=("steel", "mug"),
)


def goal_of(product: Product = SHIRT, **changes: object) -> Goal:
    values: dict = {
        "product": product,
        "request": "Find me long sleeve men's shirts with color: navy blue, and size: large",
        "attributes": ("long sleeve",),
        "options": (("color", "navy blue"), ("size", "large")),
        "price_upper": 30.0,
    }
    return Goal(**{**values, **changes})


class MemoryShelves:
    """Products by number; a search finds those whose titles have one of the words, in order, and notes the query."""

    def __init__(self, products: Sequence[Product], price: float = 25.0) -> None:
        self._products = products
        self._price = price
        self.queries: list[str] = []

    def product(self, number: int) -> Product:
        return self._products[number]

    def price(self, number: int) -> float:
        return self._price

    def search(self, query: str, count: int) -> list[int]:
        self.queries.append(query)
        words = query.split()
        found = [n for n, product in enumerate(self._products) if any(w in product.title.lower() for w in words)]
        return found[:count]
