from pathlib import Path

import pytest

from tools.make_webshop_catalogue import main


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated catalogue of 150 products, its cache included once something has opened it."""
    out = tmp_path_factory.mktemp("webshop") / "data"
    assert main(["--out", str(out), "--products", "150", "--kinds", "8", "--seed", "3"]) == 0
    return out


@pytest.fixture(scope="session")
def options(catalogue: Path) -> dict:
    return {"data": str(catalogue), "validation_goals": 100}
