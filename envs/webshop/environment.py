"""The WebShop environment: an agent looks for a product that fits an instruction, chooses its options and buys it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.base import Observation, Outcome, Start, Task
from envs.webshop import pages
from envs.webshop.nouns import APPROXIMATE
from envs.webshop.options import CORRECTED, ShopOptions, option_faults
from envs.webshop.pages import Page
from envs.webshop.session import Session
from envs.webshop.shop import SPLITS, Shop, open_shop

SUCCESS_SCORE = 10.0
SEARCH_ACTION = "search[<your query>]"


class WebshopEnvironment:
    """Plays the goals of a split. Task.index counts them in the shop's fixed order, from 0."""

    def __init__(self, shop: Shop, *, corrected: bool, approximate: bool) -> None:
        self._shop = shop
        self._corrected = corrected
        self._approximate = approximate

    def reset(self, task: Task) -> Start:
        """Start a visit with the task's goal. Task.seed has no effect.

        Raises:
            ValueError: an unknown split, or an index out of range.
        """
        check_split(task.split)
        count = self._shop.num_goals(task.split)
        if not 0 <= task.index < count:
            raise ValueError(f"goal {task.index} of {task.split!r} does not exist: there are 0 to {count - 1}")
        goal = self._shop.goal(task.split, task.index)
        self._session = Session(self._shop, goal, corrected=self._corrected)
        return Start(goal.text, goal.product.category, observe(self._session.page))

    def step(self, action: str) -> Outcome:
        """Play `search[words]` or `click[text]`; anything else changes nothing, as does everything after a purchase.

        `info`: the official score of the purchase (0 before it), and whether nouns were told by approximation.
        """
        was_open = self._session.reward is None
        self._session.act(action)
        reward = self._session.reward
        won = reward is not None and reward.total == 1.0
        return Outcome(
            observation=observe(self._session.page),
            reward=success_score(won) if was_open else 0.0,
            done=reward is not None,
            won=won,
            info={
                "task_score": reward.total if reward else 0.0,
                "title_score_approximate": float(self._approximate),
            },
        )

    def close(self) -> None:
        """Nothing to release: the shop is the process's."""


def observe(page: Page) -> Observation:
    """What the agent sees of a page. The search button is left out: clicking it does nothing."""
    search = (SEARCH_ACTION,) if page.has_search_bar else ()
    clicks = (f"click[{text}]" for text in page.clickables if text != pages.SEARCH)
    return Observation(page.text, (*search, *clicks))


def make_environment(options: Mapping[str, Any]) -> WebshopEnvironment:
    """An environment over `options` (options.ShopOptions). The first one of all makes the shop's files.

    Raises:
        ValueError: option_faults has something to say, or an official file is torn.
    """
    checked = _checked(options)
    return WebshopEnvironment(
        open_shop(checked), corrected=checked.reward == CORRECTED, approximate=checked.noun_method == APPROXIMATE
    )


def num_tasks(split: str, options: Mapping[str, Any]) -> int:
    """The number of goals of `split` (train or validation). Makes the shop's files if they are not there.

    Raises:
        ValueError: as make_environment, or an unknown split.
    """
    check_split(split)
    return open_shop(_checked(options)).num_goals(split)


def success_score(won: bool) -> float:
    """The outcome score of an episode: 10 if the purchase had the full reward, else 0."""
    return SUCCESS_SCORE if won else 0.0


def check_split(split: str) -> None:
    """Raises ValueError unless WebShop has the split."""
    if split not in SPLITS:
        raise ValueError(f"{split!r} is not a split of WebShop; set env.train_split and validation_split to {SPLITS}")


def _checked(options: Mapping[str, Any]) -> ShopOptions:
    if faults := option_faults(options):
        raise ValueError("; ".join(faults))
    return ShopOptions(**options)
