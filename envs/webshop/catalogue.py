"""Reads the official product files: items_shuffle*.json, items_ins_v2*.json and items_human_ins.json.

The product file is a JSON array of up to 5 GB, so it is read as a stream, product by product.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson

from envs.webshop.product import Instruction, Product

# Option `catalogue` -> the end of the official files' names.
CATALOGUES = {"small": "_1000", "full": ""}
MAX_ASIN_CHARACTERS = 10
DEFAULT_PRICE = 100.0
NO_ATTRIBUTES = ("DUMMY_ATTR",)  # what a product without an entry in items_ins_v2 has
_NOT_IN_NUMBERS = re.compile(r"[^\d.]")


@dataclass(frozen=True)
class CatalogueFiles:
    """The official files in one folder."""

    products: Path
    attributes: Path
    instructions: Path

    @classmethod
    def of(cls, data: Path, catalogue: str) -> CatalogueFiles:
        """The files of `catalogue` (small or full) in the folder `data`; they need not exist."""
        end = CATALOGUES[catalogue]
        return cls(data / f"items_shuffle{end}.json", data / f"items_ins_v2{end}.json", data / "items_human_ins.json")

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.products, self.attributes, self.instructions


def read_catalogue(files: CatalogueFiles) -> Iterator[Product]:
    """The shop's products in file order, without those that the official reader drops; nouns are left empty.

    Dropped are an ASIN of `nan`, of more than 10 characters, or one that was there before.

    Raises:
        ValueError: a file is torn, or a product lacks a field; the message names the file.
    """
    attributes = _read_json(files.attributes)
    instructions = _read_json(files.instructions)
    seen: set[str] = set()
    for position, item in enumerate(_stream(files.products)):
        try:
            asin = item["asin"]
            if asin == "nan" or len(asin) > MAX_ASIN_CHARACTERS or asin in seen:
                continue
            seen.add(asin)
            yield parse_product(item, attributes.get(asin, {}), instructions.get(asin, ()))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{files.products}: product number {position} cannot be read ({type(error).__name__}: {error}); "
                "download the file again"
            ) from error


def parse_product(item: Mapping[str, Any], attributes: Mapping[str, Any], instructions: Any) -> Product:
    """One record of the product file with its entries (or empty ones) of the other two files."""
    description, bullets = item["full_description"], item["small_description"]
    prices = parse_prices(item.get("pricing"))
    return Product(
        asin=item["asin"],
        title=item["name"],
        description=description or "",
        bullet_points=tuple(bullet or "" for bullet in (bullets if isinstance(bullets, list) else [bullets])),
        price_tag=f"${prices[0]}" if len(prices) == 1 else f"${prices[0]} to ${prices[1]}",
        prices=prices,
        options=_options(item.get("customization_options") or {}),
        attributes=tuple(attributes.get("attributes", NO_ATTRIBUTES)),
        category=item["category"],
        query=item["query"].lower().strip(),
        product_category=item["product_category"],
        instruction=attributes.get("instruction"),
        instruction_attributes=tuple(attributes.get("instruction_attributes") or ()),
        instructions=tuple(map(_instruction, instructions)),
    )


def parse_prices(pricing: str | None) -> tuple[float, ...]:
    """The one or two numbers of `$19.99` or `$19.99 to $29.99`, in dollars; 100.0 where there is none."""
    parts = [_NOT_IN_NUMBERS.sub("", part) for part in (pricing or "").split("$")[1:]]
    return tuple(float(part) for part in parts[:2]) or (DEFAULT_PRICE,)


def _instruction(entry: Mapping[str, Any]) -> Instruction:
    attributes, options = entry["instruction_attributes"], entry.get("instruction_options", ())
    return Instruction(entry["instruction"], tuple(attributes), tuple(options))


def _options(customizations: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        name.lower(): tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
        for name, contents in customizations.items()
        if contents is not None
    }


def _stream(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        try:
            yield from ijson.items(file, "item", use_float=True)
        except ijson.JSONError as error:
            raise ValueError(f"{path} is torn or not a JSON array ({error}); download it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is torn or not JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} does not hold a JSON object; download it again")
    return data
