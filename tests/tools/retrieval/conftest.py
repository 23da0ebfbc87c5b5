"""One generated index and one BM25 server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.retrieval.server_process import ServerProcess, free_port
from tools.prepare_search_qa import write_generated


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval") / "data"
    write_generated(folder, seed=0, validation_share=0.2)
    return folder


@pytest.fixture(scope="session")
def server(data: Path) -> Iterator[ServerProcess]:
    with ServerProcess(data / "index", free_port()) as running:
        yield running
