"""The page as a file: complete, self-contained, and nothing that a model wrote is markup in it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from megatron_opid.report.episodes import MAX_EPISODES, browser_data, pack
from megatron_opid.report.html import write_report
from megatron_opid.report.records import read_run
from tests.report.synthetic_run import HOSTILE, write_synthetic_run


class _Elements(HTMLParser):
    """Collects the start tags and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def _unpack(text: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def _embedded(page: str) -> dict:
    return _unpack(re.search(r'<script id="data" type="text/plain">([^<]*)</script>', page)[1])


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory) -> Path:
    return write_synthetic_run(tmp_path_factory.mktemp("runs") / "<b onmouseover=hack()>run", num_steps=20)


def test_no_text_of_a_run_becomes_markup(hostile_run):
    config_path = hostile_run / "config.yaml"
    config_path.write_text(config_path.read_text() + f"# {HOSTILE[0]}\n")
    page = write_report(hostile_run).read_text()
    tags = _Elements(page).tags
    assert not any(tag in ("b", "img", "iframe", "object", "base", "form") for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert [attributes.get("id") for tag, attributes in tags if tag == "script"] == ["data", "plotly", None]
    assert "&lt;b onmouseover=hack()&gt;run" in page
    assert "hacked = 1&lt;/script&gt;" in page  # the configuration is shown, escaped


def test_the_page_asks_nobody_for_anything(hostile_run):
    page = write_report(hostile_run).read_text()
    tags = _Elements(page).tags
    sources = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(value.startswith(("#", "data:")) for value in sources)
    (policy,) = [attributes["content"] for tag, attributes in tags if tag == "meta" and "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")


def test_each_report_has_a_nonce_of_its_own(hostile_run):
    nonces = [re.search(r"nonce-([\w-]+)'", write_report(hostile_run).read_text())[1] for _ in range(2)]
    assert nonces[0] != nonces[1] and all(len(nonce) >= 20 for nonce in nonces)


def test_episodes_travel_whole(hostile_run):
    data = _embedded(write_report(hostile_run).read_text())
    run = read_run(hostile_run)
    trajectories = [(saved, t) for saved in run.saved_steps for t in saved.trajectories]
    assert len(data["episodes"]) == len(trajectories) == 16
    for (saved, trajectory), row, packed in zip(trajectories, data["episodes"], data["packed"], strict=True):
        content = _unpack(packed)
        assert (row["step"], row["uid"], row["goal"]) == (saved.step, trajectory.uid, trajectory.goal)
        assert row["outcome"] == ("fault" if trajectory.failure else "success" if trajectory.success else "failure")
        assert [step["response"] for step in content["steps"]] == [step.response for step in trajectory.steps]
        for index, step in enumerate(content["steps"]):
            scores = saved.scores.get((trajectory.uid, index), ())
            assert [score["teacher"] for score in step["scores"]] == [list(s.teacher_logprobs) for s in scores]


def test_prompts_are_decoded_where_there_is_a_tokenizer(hostile_run):
    vocabulary = {f"word{i}": i for i in range(1000)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="word0")))
    for given, expected in ((tokenizer, "word0 word1 word2"), (None, None)):
        data = _embedded(write_report(hostile_run, given).read_text())
        prompt = _unpack(data["packed"][0])["steps"][0]["prompt"]
        assert prompt == expected if expected is None else prompt.startswith(expected)


def test_many_episodes_are_thinned_evenly_over_the_steps(tmp_path):
    (saved,) = read_run(write_synthetic_run(tmp_path, num_steps=10, num_episodes=1)).saved_steps
    steps = (9, 19, 29, 39)
    browser = browser_data([replace(saved, step=step, trajectories=saved.trajectories * 150) for step in steps])
    assert browser.num_recorded == 600
    shown = [row["step"] for row in browser.index]
    assert {step: shown.count(step) for step in shown} == dict.fromkeys(steps, MAX_EPISODES // 4)


def test_packed_numbers_are_json_numbers_or_null():
    assert _unpack(pack({"a": [float("nan"), 1.5], "b": (float("inf"),)})) == {"a": [None, 1.5], "b": [None]}
