"""An environment package named `toy`, so that these tests depend on no real one."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from envs.base import PromptView


def _render_prompt(view: PromptView, *, style: str, episode_skill: str = "", step_skill: str = "") -> str:
    history = " ".join(f"{observation} {action}" for observation, action in view.history)
    return " | ".join((style, view.goal, episode_skill, history, view.observation, step_skill, "act"))


@pytest.fixture(autouse=True)
def toy_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("envs.toy")
    module.render_prompt = _render_prompt
    module.success_score = lambda won: 10.0 * won
    monkeypatch.setitem(sys.modules, "envs.toy", module)
