"""WebShop as an environment: search, look at products, choose options, buy."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from ..helpers import joined_prompt
from ..recipe import Recipe, recipe_of_call
from .pages import (
    BACK_TO_SEARCH,
    BUY_NOW,
    NEXT_PAGE,
    PREV_PAGE,
    SUB_PAGES,
    Page,
    done_page,
    index_page,
    item_page,
    item_sub_page,
    results_page,
)
from .products import Product
from .reward import Nouns, PurchaseScore, rapidfuzz, score_purchase
from .search import stemmer
from .shop import WebShop, load_bundled_webshop

_SUB_PAGES = {name.lower(): name for name in (*SUB_PAGES, "Attributes")}


class WebShopEnvironment:
    """
    Buy the product that an instruction describes, in WebShop (arXiv 2207.01206). It is one of MEM1's tasks (arXiv 2506.15841).

    Pages, clicks and reward are those of the original's text mode (`WebAgentTextEnv(observation_mode="text")`): the agent
    searches, turns pages, opens products and their sub-pages, chooses options and buys, which ends the episode. An action that
    the page does not offer changes nothing, and the page is shown again. One instance runs one episode at a time.

    Args:
        shop ([`WebShop`], *optional*):
            Products and goals; shared, never changed. `None` uses the small bundled shop.
        show_available_actions (`bool`, *optional*, defaults to `False`):
            Whether a line below each page lists the available actions; some agents expect it.
        show_attributes (`bool`, *optional*, defaults to `False`):
            Whether product pages lead to a page with the attributes that the reward looks for.
        nouns (`Callable[[str], Sequence[str]]`, *optional*):
            Words of a title that the reward compares, see [`score_purchase`].

    Attributes:
        done (`bool`):
            Whether something was bought, which ends the episode.
        purchase ([`PurchaseScore`] or `None`):
            The reward of the purchase and its parts.
        available_actions (`dict`):
            Actions of the current page in the format of the original: `has_search_bar` and `clickables`.

    Example:

    ```python
    >>> from mem1_trl.environments import WebShopEnvironment

    >>> environment = WebShopEnvironment()
    >>> print(environment.reset(goal=0))  # doctest: +SKIP
    >>> print(environment.search("kettle"))  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        shop: WebShop | None = None,
        show_available_actions: bool = False,
        show_attributes: bool = False,
        nouns: Nouns | None = None,
    ) -> None:
        stemmer(), rapidfuzz()  # an extra that is missing is an error here, not at the first search or purchase
        self.shop = load_bundled_webshop() if shop is None else shop
        self._show_available_actions = show_available_actions
        self._show_attributes = show_attributes
        self._nouns = nouns
        self._results: list[Product] = []
        self._begin(0)

    @property
    def mem1_settings(self) -> dict[str, Any]:
        """The settings that a model trained in this environment needs when it is run; they are saved with the model."""
        return {"show_available_actions": self._show_available_actions, "show_attributes": self._show_attributes}

    @property
    def _recipe(self) -> Recipe:
        own: dict[str, Any] = {} if self.shop is load_bundled_webshop() else {"shop": self.shop}
        if self._nouns is not None:
            own["nouns"] = self._nouns
        return recipe_of_call("WebShopEnvironment", **own, **self.mem1_settings)

    @classmethod
    def factory(cls, shop: WebShop | None = None, **kwargs: Any) -> Callable[[], WebShopEnvironment]:
        """
        A factory for `environment_factory`. All instances share the shop; this call builds its index.

        Args:
            shop ([`WebShop`], *optional*):
                Products and goals; `None` uses the small bundled shop.
            kwargs (*optional*):
                Further arguments of [`WebShopEnvironment`].

        Returns:
            `Callable[[], WebShopEnvironment]`: takes no argument.
        """
        shop = load_bundled_webshop() if shop is None else shop
        shop.search_engine  # noqa: B018  builds the index now, not in the middle of an episode
        return partial(cls, shop, **kwargs)

    def reset(self, prompt: Any = None, goal: int | None = None, instruction: str | None = None, **row: Any) -> str:
        """
        Start a session on a row of [`WebShop.dataset`].

        Args:
            prompt (`str` or `list[dict]`, *optional*):
                Task prompt as shown to the agent. If given, the page begins after a blank line.
            goal (`int`):
                Number of the goal in the shop.
            instruction (`str`, *optional*):
                Instruction of the goal. If given, it must match the goal.
            **row:
                Further columns, not used.

        Returns:
            `str`: the page with the instruction and the search bar.

        Raises:
            `ValueError`: if the shop does not have this goal, or the row was made for another shop.
        """
        if goal is None:
            raise ValueError("A row must have a `goal`, got none: take the rows from `shop.dataset(split)`.")
        if not 0 <= goal < len(self.shop.goals):
            raise ValueError(f"goal must be between 0 and {len(self.shop.goals) - 1}, got {goal}.")
        if instruction is not None and instruction != self.shop.goals[goal].instruction_text:
            raise ValueError(
                f"The row says that goal {goal} is {instruction!r:.80}, but in this shop it is another one: make the dataset "
                "and the environments with the same shop."
            )
        self._begin(goal)
        return joined_prompt(prompt, self._observation())

    def search(self, keywords: str) -> str:
        """
        Search the shop for products.

        Args:
            keywords: A few words such as the kind of product and what it should be like.

        Returns:
            The first page of results.
        """
        keywords = keywords.strip().lower()
        if keywords and not self.done:
            self._results = self.shop.search_engine.search(keywords)
            self._show_results(1)
        return self._observation()

    def click(self, element: str) -> str:
        """
        Click a button, a product or an option of the current page, by its text.

        Args:
            element: What stands on the page, such as B0EXAMPLE1, large, Buy Now, Next > or Back to Search.

        Returns:
            The page that follows; the same page if it holds no such element.
        """
        name = element.strip().lower()
        if name in self._page.clickables and name != "search" and not self.done:
            self._follow(name)
        return self._observation()

    @property
    def available_actions(self) -> dict[str, Any]:
        """Actions of the current page: `has_search_bar` and `clickables`, in lower case and in the order of the original."""
        return {"has_search_bar": self._page.has_search_bar, "clickables": list(self._page.clickables)}

    def get_reward(self) -> float:
        """The reward of the purchase, 0 to 1; 0 if nothing was bought."""
        return self.purchase.reward if self.purchase is not None else 0.0

    def _begin(self, goal: int) -> None:
        self._goal = self.shop.goals[goal]
        self.done = False
        self.purchase: PurchaseScore | None = None
        self._to_index()

    def _to_index(self) -> None:
        self._results = []
        self._page_number = 1
        self._leave_product()
        self._page: Page = index_page(self._goal.instruction_text)

    def _leave_product(self) -> None:
        self._product: Product | None = None
        self._options: dict[str, str] = {}

    def _follow(self, name: str) -> None:
        """Return the page that a clickable of the current page leads to."""
        kind = self._page.kind
        if name == BACK_TO_SEARCH.lower():
            self._to_index()
        elif kind == "search_results":
            if name == NEXT_PAGE.lower():
                self._show_results(self._page_number + 1)
            elif name == PREV_PAGE.lower():
                self._show_results(self._page_number - 1)
            else:
                self._product = next(product for product in self._results if product.asin.lower() == name)
                self._show_product()
        elif name == PREV_PAGE.lower():
            if kind == "item_sub_page":
                self._show_product()
            else:
                self._show_results(self._page_number)
        elif name == BUY_NOW.lower():
            self._buy()
        elif name in _SUB_PAGES:
            self._page = item_sub_page(self._goal.instruction_text, self._current(), _SUB_PAGES[name])
        else:
            self._options[self._page.option_names[name]] = name
            self._show_product()

    def _show_results(self, number: int) -> None:
        """A page of the results. Leaving a product drops the options that were chosen, as in the original."""
        self._leave_product()
        self._page_number = number
        self._page = results_page(self._goal.instruction_text, self._results, number)

    def _show_product(self) -> None:
        self._page = item_page(self._goal.instruction_text, self._current(), self._show_attributes)

    def _buy(self) -> None:
        product = self._current()
        price = self.shop.prices[product.asin]
        self.purchase = score_purchase(product, self._goal, price, self._options, self._nouns)
        self.done = True
        self._page = done_page(product.asin, self._options, self.purchase.reward)

    def _current(self) -> Product:
        assert self._product is not None  # the pages of a product can only be reached from it
        return self._product

    def _observation(self) -> str:
        if not self._show_available_actions:
            return self._page.text
        return f"{self._page.text}\n\nAvailable Actions:\n{json.dumps(self.available_actions)}"
