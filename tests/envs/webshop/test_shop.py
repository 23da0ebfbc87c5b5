"""The shop's files: built once, shared, not half-written, and what is refused before."""

import os
import shutil
import subprocess
import sys

import pytest

from envs.webshop import shop as shop_module
from envs.webshop.catalogue import CatalogueFiles, read_catalogue
from envs.webshop.options import ShopOptions, option_faults
from envs.webshop.product import index_text
from envs.webshop.shop import open_shop


def test_products_stand_in_the_order_of_their_asins_whatever_the_batches(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(shop_module, "_NOUN_BATCH", 7)
    shop = open_shop(ShopOptions(str(catalogue), str(tmp_path), validation_goals=100))
    expected = sorted(read_catalogue(CatalogueFiles.of(catalogue, "small")), key=lambda product: product.asin)
    products = [shop.product(number) for number in range(shop.num_products())]
    assert len(products) == 150
    assert [p.asin for p in products] == [p.asin for p in expected]
    assert [index_text(p) for p in products] == [index_text(p) for p in expected]
    assert all(p.nouns for p in products)


def test_search_finds_products_by_their_words(catalogue, options):
    shop = open_shop(ShopOptions(**options))
    title = shop.product(42).title
    assert 42 in shop.search(title, 3)
    assert len(shop.search("made for every day", 50)) == 50  # words of every description
    assert shop.search("", 50) == shop.search("the of", 50) == []


def test_many_processes_build_one_cache(catalogue, tmp_path):
    command = (
        "import sys; from envs.webshop.shop import open_shop; from envs.webshop.options import ShopOptions; "
        "print(open_shop(ShopOptions(sys.argv[1], sys.argv[2], validation_goals=100)).num_goals('train'))"
    )
    arguments = [sys.executable, "-c", command, str(catalogue), str(tmp_path)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [process.communicate()[0] for process in processes]
    assert counts[0] == counts[1] != ""
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir()) == ["goals", "index", "lock", "products"]


def test_a_killed_build_is_made_again_and_a_changed_file_is_noticed(catalogue, tmp_path):
    data = shutil.copytree(catalogue, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    options = ShopOptions(str(data), validation_goals=100)
    count = open_shop(options).num_products()
    (products,) = (data / "cache").glob("products_*")
    for path in (data / "cache").glob("*_*"):
        shutil.rmtree(path)
    half = products.with_name(f"{products.name}.partial")  # as a killed process leaves it
    half.mkdir()
    (half / "records.jsonl").write_text("[")
    shop_module._open.cache_clear()
    assert open_shop(options).num_products() == count and not half.exists()
    os.utime(options.files.products, ns=(1, 1))
    open_shop(options)
    assert len(list((data / "cache").glob("products_*"))) == 2


def test_faults_are_told_together(tmp_path):
    faults = option_faults(
        {"data": str(tmp_path), "catalogue": "large", "seed": -1, "validation_goals": True, "goals": "mine", "sead": 1}
    )
    assert len(faults) == 5
    for part in ("env.options.sead", "catalogue='large'", "seed=-1", "validation_goals=True", "goals='mine'"):
        assert any(part in fault for fault in faults)
    missing = option_faults({"data": str(tmp_path)})
    assert len(missing) == 3 and all("tools.make_webshop_catalogue" in fault for fault in missing)


def test_too_few_goals(catalogue, tmp_path):
    with pytest.raises(ValueError, match=r"validation_goals=5000 leaves none of the \d+ synthetic goals"):
        open_shop(ShopOptions(str(catalogue), str(tmp_path), validation_goals=5000))
    assert all(path.name.endswith(".partial") for path in tmp_path.glob("goals_*"))


def test_spacy_is_asked_for_by_name(catalogue):
    from envs.webshop.nouns import has_spacy

    faults = option_faults({"data": str(catalogue), "nouns": "spacy"})
    assert bool(faults) != has_spacy()
