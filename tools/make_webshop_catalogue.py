"""Generates a WebShop catalogue in the official file formats, for tests, the demo and benchmarks.

    python -m tools.make_webshop_catalogue --out data/webshop --products 2000 --seed 0

Products are of the kinds in webshop_kinds.json, with attributes, options and prices as real ones have them; most carry
a synthetic instruction, some a person's. The same arguments give the same files. `--full` names the files as the
official catalogue of 1.18 M products is named, `--filler-words` lengthens descriptions by words of a Zipf distribution.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tqdm import tqdm

from tools.extras import imports_of

with imports_of("webshop", __name__):
    from envs.webshop.catalogue import CATALOGUES, CatalogueFiles

KINDS_FILE = Path(__file__).parent / "webshop_kinds.json"
ASIN_DIGITS = 8
_NUM_FILLER_WORDS = 300_000
_ZIPF_EXPONENT = 1.07  # of words in English text, about
_FILLER_BATCH = 2048
_HUMAN_WISHES = (
    "i am looking for {article} {kind} that is {attributes}",
    "i need {attributes} {kind}",
    "can you find {article} {attributes} {kind} for me.",
    "i want to buy {article} {kind}. it should be {attributes}.",
)


@dataclass(frozen=True)
class Kind:
    """One sort of product; `attributes` and `options` are what its products draw from, `price` in dollars."""

    category: str
    product_category: str
    query: str
    name: str
    attributes: Sequence[str]
    options: Mapping[str, Sequence[str]]
    price: tuple[float, float]


@dataclass(frozen=True)
class Entry:
    """What one product contributes to the three official files; `wishes` is None where it has none."""

    item: dict[str, Any]
    attributes: dict[str, Any]
    wishes: list[dict[str, Any]] | None


def read_kinds(num_kinds: int | None = None) -> list[Kind]:
    """The first `num_kinds` kinds of the data file, or all."""
    data = json.loads(KINDS_FILE.read_text())
    return [
        Kind(
            category,
            product_category,
            query,
            name,
            data["attributes"][attributes],
            dict(data["options"][option] for option in options),
            (low, high),
        )
        for category, product_category, query, name, attributes, options, (low, high) in data["kinds"][:num_kinds]
    ]


def generate(
    num_products: int, seed: int, kinds: Sequence[Kind], *, filler_words: int = 0, asin_digits: int = ASIN_DIGITS
) -> Iterator[Entry]:
    """The products in file order, kinds mixed. No two have the same ASIN, `B0` and some digits."""
    rng = Random(seed)
    words = json.loads(KINDS_FILE.read_text())
    brands = ["".join(parts).title() for parts in combinations(words["brands"], repeat=2)]
    filler = _filler(seed, filler_words)
    for number in rng.sample(range(10**asin_digits), num_products):
        entry = _entry(f"B0{number:0{asin_digits}d}", rng.choice(kinds), brands, words["words"], rng)
        if filler_words:
            entry.item["full_description"] += " " + next(filler)
        yield entry


def _entry(asin: str, kind: Kind, brands: Sequence[str], words: Sequence[str], rng: Random) -> Entry:
    attributes = rng.sample(kind.attributes, rng.randint(2, 4))
    options = {
        name: sorted(rng.sample(values, rng.randint(2, min(6, len(values)))), key=values.index)
        for name, values in kind.options.items()
    }
    brand = rng.choice(brands)
    shown = " ".join(attribute.title() for attribute in attributes[:2])
    title = f"{brand} {rng.choice(words).title()} {kind.name.title()} {shown}"
    item = {
        "asin": asin,
        "name": title,
        "full_description": f"This {kind.name} by {brand} is made for every day: {', '.join(attributes)}. "
        f"Choose from {sum(map(len, options.values()))} variants.",
        "small_description": [f"{attribute.capitalize()}: a {kind.name} you will like." for attribute in attributes],
        "pricing": _pricing(kind.price, rng),
        "customization_options": {
            name.title(): [{"value": value, "image": None} for value in values] for name, values in options.items()
        },
        "images": [f"https://example.invalid/{asin}.jpg"],
        "category": kind.category,
        "query": kind.query,
        "product_category": kind.product_category,
    }
    wanted = attributes[: rng.randint(1, 2)]
    instruction = f"Find me {', '.join(wanted)} {kind.query}" if rng.random() < 0.8 else None
    entry = {"attributes": attributes, "instruction": instruction, "instruction_attributes": wanted}
    return Entry(item, entry, [_wish(kind, attributes, options, rng)] if rng.random() < 0.15 else None)


def _pricing(price: tuple[float, float], rng: Random) -> str | None:
    """One price, two, or (of one product in twenty) none."""
    draw, (low, high) = rng.random(), price
    first = rng.uniform(low, high)
    if draw < 0.05:
        return None
    return f"${first:.2f}" if draw < 0.65 else f"${first:.2f} to ${first * rng.uniform(1.1, 1.6):.2f}"


def _wish(kind: Kind, attributes: Sequence[str], options: Mapping[str, Sequence[str]], rng: Random) -> dict[str, Any]:
    """A person's wish, some of the options in its text."""
    wanted = rng.sample(attributes, rng.randint(1, 2))
    chosen = [rng.choice(values) for values in options.values() if rng.random() < 0.7]
    text = rng.choice(_HUMAN_WISHES).format(article="a", kind=kind.name, attributes=" and ".join(wanted))
    if chosen:
        text = f"{text.strip('.')} in {' and '.join(chosen)}"
    return {"instruction": text, "instruction_attributes": wanted, "instruction_options": chosen}


def _filler(seed: int, num_words: int) -> Iterator[str]:
    """Texts of `num_words` made-up words each, as frequent as words of a natural text are."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    lengths = rng.integers(3, 11, _NUM_FILLER_WORDS)
    vocabulary = np.array(["".join(letters[rng.integers(0, 26, length)]) for length in lengths], dtype=object)
    weights = np.arange(1, _NUM_FILLER_WORDS + 1) ** -_ZIPF_EXPONENT
    cumulative = np.cumsum(weights / weights.sum())
    while True:
        ranks = np.searchsorted(cumulative, rng.random((_FILLER_BATCH, num_words)))
        for row in vocabulary[np.minimum(ranks, _NUM_FILLER_WORDS - 1)]:
            yield " ".join(row)


def write_catalogue(out: Path, entries: Iterator[Entry], catalogue: str, total: int | None = None) -> int:
    """Write the three files of `catalogue` (small or full) into `out`; returns the number of products.

    Raises:
        ValueError: `out` already holds such files.
    """
    files = CatalogueFiles.of(out, catalogue)
    if present := [path for path in files.paths if path.exists()]:
        raise ValueError(f"{present[0]} exists; choose another --out or remove it")
    out.mkdir(parents=True, exist_ok=True)
    partial = [path.with_name(f"{path.name}.partial") for path in files.paths]
    count = 0
    with (
        partial[0].open("w", encoding="utf-8") as items,
        partial[1].open("w", encoding="utf-8") as attributes,
        partial[2].open("w", encoding="utf-8") as wishes,
    ):
        writers = (_JsonWriter(items, "[]"), _JsonWriter(attributes, "{}"), _JsonWriter(wishes, "{}"))
        for entry in tqdm(entries, total=total, desc="products", unit="", disable=not sys.stderr.isatty()):
            writers[0].write(entry.item)
            writers[1].write(entry.attributes, entry.item["asin"])
            if entry.wishes is not None:
                writers[2].write(entry.wishes, entry.item["asin"])
            count += 1
        for writer in writers:
            writer.close()
    for unfinished, path in zip(partial, files.paths, strict=True):
        unfinished.rename(path)
    return count


class _JsonWriter:
    """A JSON array or object, written member by member."""

    def __init__(self, file: Any, brackets: str) -> None:
        self._file, self._end = file, brackets[1]
        self._separator = brackets[0]

    def write(self, value: Any, key: str | None = None) -> None:
        name = "" if key is None else f"{json.dumps(key)}: "
        self._file.write(f"{self._separator}\n{name}{json.dumps(value, ensure_ascii=False)}")
        self._separator = ","

    def close(self) -> None:
        if self._separator != ",":
            self._file.write(self._separator)
        self._file.write(f"\n{self._end}\n")


def _faults(options: argparse.Namespace) -> list[str]:
    """What is wrong with the numbers of the command line."""
    bounds = {
        "asin_digits": (1, ASIN_DIGITS),
        "products": (1, 10 ** max(0, options.asin_digits)),
        "kinds": (1, len(read_kinds())),
        "filler_words": (0, None),
    }
    return [
        f"--{name.replace('_', '-')} {value} is not {low} to {'any' if high is None else high}"
        for name, (low, high) in bounds.items()
        if (value := getattr(options, name)) is not None and (value < low or (high is not None and value > high))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--products", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=int, help="take only the first so many kinds of product; default: all")
    parser.add_argument(
        "--asin-digits", type=int, default=ASIN_DIGITS, help="fewer are easier to copy for a tiny model"
    )
    parser.add_argument("--filler-words", type=int, default=0, help="added to every description")
    parser.add_argument("--full", action="store_true", help="name the files as those of the full catalogue")
    options = parser.parse_args(arguments)
    if faults := _faults(options):
        print("\n".join(f"make_webshop_catalogue: {fault}" for fault in faults), file=sys.stderr)
        return 2
    kinds = read_kinds(options.kinds)
    entries = generate(
        options.products, options.seed, kinds, filler_words=options.filler_words, asin_digits=options.asin_digits
    )
    small, full = CATALOGUES
    try:
        count = write_catalogue(options.out, entries, full if options.full else small, options.products)
    except ValueError as error:
        print(f"make_webshop_catalogue: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {count} products of {len(kinds)} kinds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
