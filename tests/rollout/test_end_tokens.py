"""The tokens at which every engine ends a response."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rollout.end_tokens import end_token_ids

IM_END, END_OF_TEXT = 151645, 151643


@pytest.mark.parametrize(
    "own, expected",
    [([IM_END, END_OF_TEXT], (IM_END, END_OF_TEXT)), (END_OF_TEXT, (IM_END, END_OF_TEXT)), (None, (IM_END,))],
)
def test_the_tokenizers_and_all_of_the_models_own(tmp_path: Path, own: object, expected: tuple[int, ...]):
    (tmp_path / "generation_config.json").write_text(json.dumps({} if own is None else {"eos_token_id": own}))
    assert end_token_ids(SimpleNamespace(eos_token_id=IM_END), tmp_path) == expected


def test_a_model_may_have_no_generation_config(tmp_path: Path):
    assert end_token_ids(SimpleNamespace(eos_token_id=IM_END), tmp_path) == (IM_END,)
