"""The official file formats, and what the official reader makes of odd entries."""

import json
from pathlib import Path

import pytest

from envs.webshop.catalogue import CatalogueFiles, parse_prices, read_catalogue
from envs.webshop.product import Instruction, Product, dump_product, index_text, load_product


def item(asin: str = "B000000001", **changes: object) -> dict:
    return {
        "asin": asin,
        "name": "Acme Shirt",
        "full_description": "A shirt.",
        "small_description": ["Soft", "Warm"],
        "pricing": "$19.99",
        "customization_options": {"Color": [{"value": " Navy/Blue ", "image": None}], "Fit": None},
        "images": ["x"],
        "category": "fashion",
        "query": " Men's Shirts ",
        "product_category": "Clothing › Shirts",
        "brand": "ignored",
        **changes,
    }


def read(folder: Path, items: object, attributes: object = None, wishes: object = None) -> list[Product]:
    files = CatalogueFiles.of(folder, "full")
    for path, content in zip(files.paths, (items, attributes or {}, wishes or {}), strict=True):
        path.write_text(json.dumps(content))
    return list(read_catalogue(files))


def test_file_names():
    assert [path.name for path in CatalogueFiles.of(Path("d"), "small").paths] == [
        "items_shuffle_1000.json",
        "items_ins_v2_1000.json",
        "items_human_ins.json",
    ]
    assert [path.name for path in CatalogueFiles.of(Path("d"), "full").paths][:2] == [
        "items_shuffle.json",
        "items_ins_v2.json",
    ]


def test_a_product_with_its_entries(tmp_path: Path):
    attributes = {"B000000001": {"attributes": ["soft"], "instruction": "Find", "instruction_attributes": ["soft"]}}
    wishes = {"B000000001": [{"instruction": "i want it.", "instruction_attributes": [], "instruction_options": ["x"]}]}
    (product,) = read(tmp_path, [item()], attributes, wishes)
    assert product == Product(
        asin="B000000001",
        title="Acme Shirt",
        description="A shirt.",
        bullet_points=("Soft", "Warm"),
        price_tag="$19.99",
        prices=(19.99,),
        options={"color": ("navy | blue",)},
        attributes=("soft",),
        category="fashion",
        query="men's shirts",
        product_category="Clothing › Shirts",
        instruction="Find",
        instruction_attributes=("soft",),
        instructions=(Instruction("i want it.", (), ("x",)),),
    )
    assert load_product(json.loads(json.dumps(dump_product(product)))) == product


def test_missing_things(tmp_path: Path):
    odd = item(customization_options=None, small_description="Only one", pricing=None, full_description=None)
    (product,) = read(tmp_path, [odd])
    assert product.attributes == ("DUMMY_ATTR",) and product.instruction is None and product.instructions == ()
    assert product.options == {} and product.bullet_points == ("Only one",) and product.description == ""
    assert (product.price_tag, product.prices) == ("$100.0", (100.0,))


@pytest.mark.parametrize(
    ("pricing", "prices"),
    [
        ("$19.99", (19.99,)),
        ("$1,299.00", (1299.0,)),
        ("$19.99 to $29.99", (19.99, 29.99)),
        ("$1 to $2 to $3", (1.0, 2.0)),
        ("", (100.0,)),
        (None, (100.0,)),
        ("free", (100.0,)),
    ],
)
def test_prices(pricing, prices):
    assert parse_prices(pricing) == prices


def test_what_the_official_reader_drops(tmp_path: Path):
    items = [item("nan"), item("B0000000011"), item("B1"), item("B1", name="Again"), item("B2")]
    assert [(p.asin, p.title) for p in read(tmp_path, items)] == [("B1", "Acme Shirt"), ("B2", "Acme Shirt")]


def test_index_text(tmp_path: Path):
    options = {"Color": [{"value": "Red"}, {"value": "Blue"}], "Size": [{"value": "L"}]}
    (product,) = read(tmp_path, [item(customization_options=options)])
    assert index_text(product) == "acme shirt a shirt. soft color: red, blue, and size: l"


def test_a_torn_file_and_a_product_without_a_name_are_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"items_shuffle.json: product number 1 cannot be read \(KeyError: 'name'\)"):
        read(tmp_path, [item(), {key: value for key, value in item("B2").items() if key != "name"}])
    files = CatalogueFiles.of(tmp_path, "full")
    files.products.write_text("[" + json.dumps(item())[:-9])
    with pytest.raises(ValueError, match="items_shuffle.json is torn"):
        list(read_catalogue(files))
    files.attributes.write_text('{"a": ')
    with pytest.raises(ValueError, match="items_ins_v2.json is torn"):
        list(read_catalogue(files))
