"""A generated world, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.prepare_search_qa import write_generated


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `prepare_search_qa generated --seed 0`."""
    folder = tmp_path_factory.mktemp("search") / "data"
    write_generated(folder, seed=0, validation_share=0.2)
    return folder


@pytest.fixture
def options(generated: Path) -> dict[str, Any]:
    return {"data": str(generated), "topk": 2}
