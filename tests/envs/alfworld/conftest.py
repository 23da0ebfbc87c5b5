from pathlib import Path

import pytest

from tools.make_alfworld_games import make_games


@pytest.fixture(scope="session")
def small_games(tmp_path_factory) -> Path:
    """A folder with games of the lowest difficulty, two of each task type and split."""
    out = tmp_path_factory.mktemp("small_games")
    make_games(out, seed=1, counts={"train": 12, "valid_seen": 12, "valid_unseen": 12}, difficulty=0)
    return out


@pytest.fixture(scope="session")
def large_games(tmp_path_factory) -> Path:
    """A folder with games of whole rooms, one of each task type."""
    out = tmp_path_factory.mktemp("large_games")
    make_games(out, seed=2, counts={"train": 6, "valid_seen": 0, "valid_unseen": 0}, difficulty=3)
    return out
