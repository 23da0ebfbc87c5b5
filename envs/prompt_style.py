"""The styles that an environment can show a step in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from envs.base import PromptView

Renderer = Callable[[PromptView, str, str], str]  # a view, an episode skill, a step skill (empty: none)


def renderer(styles: Mapping[str, Renderer], style: str, env: str) -> Renderer:
    """The environment's renderer of `style`. Raises: ValueError: it has none."""
    if style not in styles:
        raise ValueError(f"env.prompt_style={style!r} is not a style of {env}; set it to {' or '.join(styles)}")
    return styles[style]
