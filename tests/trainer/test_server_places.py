"""Where servers listen, and which rank looks after which."""

from __future__ import annotations

import os

import pytest

from megatron_opid.config import load
from megatron_opid.engines import make_pool
from megatron_opid.servers import LOOPBACK, Place, _own_address, _share_key
from rollout.engines.http import API_KEY


@pytest.fixture
def routes(monkeypatch):
    """Which of this machine's addresses leads where; the first machine's own name leads to loopback, as in Debian."""
    monkeypatch.setenv("MASTER_ADDR", "n1")
    leads = {}
    monkeypatch.setattr("megatron_opid.servers.address_towards", lambda host: leads[host])
    return leads


def test_a_machine_listens_where_the_others_reach_it(routes):
    gathered = ["127.0.0.1", "127.0.0.1", "10.0.0.2", "10.0.0.2"]
    routes |= {"n1": "127.0.0.1", "10.0.0.2": "10.0.0.1"}
    assert _own_address(Place(1, 4, 1, 2), lambda own: gathered) == "10.0.0.1"
    routes |= {"n1": "10.0.0.2"}
    assert _own_address(Place(3, 4, 1, 2), lambda own: gathered) == "10.0.0.2"


def test_the_places_of_ranks_come_from_their_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert Place.of(3, 4).first_rank == 0 and Place.of(3, 4).is_alone
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Place.of(3, 4).first_rank == 2 and not Place.of(3, 4).is_alone


@pytest.mark.parametrize("given", ["", "the-sites-own"])
def test_the_key_is_rank_0s(monkeypatch, given: str):
    monkeypatch.setenv(API_KEY, given)
    said = []
    _share_key(Place(0, 2, 0, 1), lambda text: [text] if not said.append(text) else [])
    assert os.environ[API_KEY] == said[0] and (said[0] == given or len(said[0]) > 40)
    _share_key(Place(1, 2, 0, 1), lambda text: ["key-of-rank-0", said.append(text)])
    assert os.environ[API_KEY] == "key-of-rank-0" and said[1] == ""


def test_given_servers_are_rank_0s_and_started_ones_their_starters():
    given = load(["engine.name=vllm", f"engine.urls=[http://{LOOPBACK}:1,http://{LOOPBACK}:2]"])
    assert make_pool(given, given.engine.urls, None, rank=0).own_urls == given.engine.urls
    assert make_pool(given, given.engine.urls, None, rank=1).own_urls == ()

    class OfTheSecondMachine:
        urls = ("http://b:1",)

    started = load(["engine.name=vllm"])
    urls = ("http://a:1", "http://b:1")
    assert make_pool(started, urls, None, rank=1).own_urls == ()
    assert make_pool(started, urls, OfTheSecondMachine(), rank=2).own_urls == ("http://b:1",)
