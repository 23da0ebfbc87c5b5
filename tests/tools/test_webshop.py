"""The generated catalogue and the demonstrations made of it."""

import json
from pathlib import Path

import pytest

from envs.webshop.catalogue import CatalogueFiles, read_catalogue
from tools import make_webshop_catalogue, make_webshop_demonstrations
from tools.make_webshop_catalogue import generate, read_kinds


def make(out: Path, *arguments: str) -> int:
    return make_webshop_catalogue.main(["--out", str(out), "--products", "60", *arguments])


def contents(out: Path, catalogue: str = "small") -> list[str]:
    return [path.read_text() for path in CatalogueFiles.of(out, catalogue).paths]


def test_the_same_seed_gives_the_same_files(tmp_path: Path):
    assert make(tmp_path / "a") == make(tmp_path / "b") == make(tmp_path / "c", "--seed", "1") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_products_are_read_as_they_were_meant(tmp_path: Path):
    assert make(tmp_path, "--full", "--filler-words", "20") == 0
    products = list(read_catalogue(CatalogueFiles.of(tmp_path, "full")))
    kinds = {kind.query: kind for kind in read_kinds()}
    assert len(products) == len({product.asin for product in products}) == 60
    for product in products:
        kind = kinds[product.query]
        assert set(product.attributes) <= set(kind.attributes)
        assert {
            name: set(values) <= set(kind.options[name]) for name, values in product.options.items()
        } == dict.fromkeys(kind.options, True)
        low, high = kind.price
        assert product.prices == (100.0,) or low - 0.01 <= product.prices[0] <= high + 0.01
        assert len(product.description.split()) > 20
    assert {len(product.prices) for product in products} == {1, 2}
    assert any(product.instruction is None for product in products) and any(p.instructions for p in products)


def test_the_default_catalogue_is_as_large_as_it_says():
    entries = list(generate(2000, 0, read_kinds()))
    assert len({entry.item["asin"] for entry in entries}) == 2000
    assert len({entry.item["query"] for entry in entries}) == len(read_kinds()) == 53
    assert {entry.item["category"] for entry in entries} == {"fashion", "beauty", "grocery", "electronics", "garden"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--products", "0"], "--products 0 is not 1 to 100000000"),
        (["--products", "20", "--asin-digits", "1"], "--products 20 is not 1 to 10"),
        (["--kinds", "54"], "--kinds 54 is not 1 to 53"),
        (["--filler-words", "-1"], "--filler-words -1 is not 0 to any"),
    ],
)
def test_bad_numbers_are_refused(tmp_path: Path, capsys, arguments: list[str], message: str):
    assert make_webshop_catalogue.main(["--out", str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_files_that_are_there_are_not_overwritten(tmp_path: Path, capsys):
    assert make(tmp_path) == 0
    before = contents(tmp_path)
    assert make(tmp_path, "--seed", "1") == 2
    assert "items_shuffle_1000.json exists" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_demonstrations(tmp_path: Path, capsys):
    assert make_webshop_catalogue.main(["--out", str(tmp_path), "--products", "120", "--kinds", "4"]) == 0
    arguments = ["--data", str(tmp_path), "--episodes", "12", "--seed", "1"]
    for name in ("a.jsonl", "b.jsonl"):
        assert make_webshop_demonstrations.main([*arguments, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    lines = [json.loads(line)["messages"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) > 100
    for user, assistant in lines:
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"].startswith("task: find me ") and user["content"].endswith("\nact:")
        action = assistant["content"].removeprefix("<think></think><action>").removesuffix("</action>")
        assert action.startswith(("search[", "click[")) and action.endswith("]")
        hints = [line for line in user["content"].splitlines() if line.startswith("hint: now ")]
        if hints:
            words = hints[0].removeprefix("hint: now ").removesuffix(" .")
            assert action == f"{words.split(' ', 1)[0]}[{words.split(' ', 1)[1]}]"
    assert make_webshop_demonstrations.main(["--data", str(tmp_path / "no"), "--out", str(tmp_path / "c")]) == 2
    assert "has no file items_shuffle_1000.json" in capsys.readouterr().err
