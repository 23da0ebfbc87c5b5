"""One visit to the shop: from the search page to a purchase."""

from __future__ import annotations

import re
from typing import Protocol

from envs.webshop import pages
from envs.webshop.goals import Goal
from envs.webshop.pages import PRODUCTS_PER_PAGE, Page
from envs.webshop.product import Product
from envs.webshop.reward import Reward, judge

NUM_HITS = 50
_ACTION = re.compile(r"(.+)\[(.+)\]")


class Shelves(Protocol):
    """What a session needs of the shop; products are known by their numbers."""

    def product(self, number: int) -> Product: ...

    def price(self, number: int) -> float: ...

    def search(self, query: str, count: int) -> list[int]: ...


class Session:
    """The pages of one episode. `reward` is None until something was bought; then nothing changes any more."""

    def __init__(self, shelves: Shelves, goal: Goal, *, corrected: bool) -> None:
        self.goal = goal
        self.reward: Reward | None = None
        self._shelves = shelves
        self._corrected = corrected
        self._start()

    def act(self, action: str) -> bool:
        """Play `search[words]` or `click[text]`; returns whether the shop understood it, else nothing changes.

        A search works on every page, a click on what the page shows. The query is taken as plain words: the official
        engine's special modes (a first word of <r>, <a>, <c> or <q>) do not exist here.
        """
        found = _ACTION.match(action)
        if found is None or self.reward is not None:
            return False
        name, argument = found[1], found[2].lower()
        if name == "search":
            self._search(argument)
        elif name == "click" and argument in self.page.clickables and argument != pages.SEARCH:
            self._click(argument)
        else:
            return False
        return True

    def _start(self) -> None:
        self.page: Page = pages.search_page(self.goal.text)
        self._hits: list[int] = []
        self._product: int | None = None  # its number, on its page and the pages below it
        self._is_below = False
        self._chosen: dict[str, str] = {}

    def _search(self, query: str) -> None:
        self._hits = self._shelves.search(query, NUM_HITS)
        self._show_results(1)

    def _show_results(self, number: int) -> None:
        self._results = number
        self._product, self._is_below, self._chosen = None, False, {}
        shown = self._hits[(number - 1) * PRODUCTS_PER_PAGE : number * PRODUCTS_PER_PAGE]
        products = [(hit, self._shelves.product(hit)) for hit in shown]
        self.page = pages.results_page(self.goal.text, number, len(self._hits), products)

    def _show_item(self) -> None:
        self._is_below = False
        self.page = pages.item_page(self.goal.text, self._shelves.product(self._product))

    def _click(self, text: str) -> None:
        """Buttons go before options of the same text."""
        if text == pages.BACK_TO_SEARCH:
            self._start()
        elif self._product is None:
            if text in self.page.links:
                self._product = self.page.links[text]
                self._show_item()
            else:
                self._show_results(self._results + (1 if text == pages.NEXT else -1))
        elif text == pages.PREVIOUS:
            if self._is_below:
                self._show_item()
            else:
                self._show_results(self._results)
        elif text == pages.BUY:
            self._buy()
        elif text in pages.SUB_PAGES:
            self._is_below = True
            self.page = pages.sub_page(self.goal.text, self._shelves.product(self._product), text)
        else:
            self._chosen[self.page.options[text]] = text
            self._show_item()

    def _buy(self) -> None:
        product = self._shelves.product(self._product)
        price = self._shelves.price(self._product)
        self.reward = judge(product, price, self._chosen, self.goal, corrected=self._corrected)
        self.page = pages.done_page(product, self._chosen, self.reward.total)
