"""A shop: products, prices, goals and their splits, from the user's own WebShop files or from the small one that is bundled."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .goals import Goal, make_human_goals, make_synthetic_goals
from .products import Product, draw_prices, read_products
from .search import ProductSearch

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("test", "eval", "train")

_GOAL_SEED = 233  # the original's: the order of the goals, and with it the split, is that of published results


class WebShop:
    """
    Everything that the episodes of a shop share. It never changes, so any number of environments may use one.

    Args:
        products (`Sequence[Product]`):
            What is for sale.
        goals (`Sequence[Goal]`):
            What customers want, in the order of the splits: test, eval, train.
        prices (`Mapping[str, float]`, *optional*):
            Price of each product in dollars, by `asin`; `None` reads them off the products, with seed 233 for price ranges.
        test_size (`int`, *optional*, defaults to `500`):
            Goals of the split `"test"`, the first ones; the default is the original's.
        eval_size (`int`, *optional*, defaults to `1000`):
            Goals of the split `"eval"`, those after them.

    Raises:
        `ValueError`: if there is no product, a goal is for no product of the shop, or no goal is left to train on.
    """

    def __init__(
        self,
        products: Sequence[Product],
        goals: Sequence[Goal],
        prices: Mapping[str, float] | None = None,
        test_size: int = 500,
        eval_size: int = 1000,
    ) -> None:
        if not products:
            raise ValueError("The shop is empty: pass at least one product.")
        if test_size < 0 or eval_size < 0:
            raise ValueError(f"test_size={test_size} and eval_size={eval_size} are numbers of goals: use 0 or more.")
        if len(goals) <= test_size + eval_size:
            raise ValueError(
                f"There are {len(goals)} goals, and test_size={test_size} and eval_size={eval_size} leave none to train "
                "on: pass smaller sizes."
            )
        self.products = {product.asin: product for product in products}
        self.prices = dict(draw_prices(products, _GOAL_SEED) if prices is None else prices)
        unknown = sorted({goal.asin for goal in goals} - set(self.products))
        if unknown:
            raise ValueError(f"A goal is for the product {unknown[0]!r}, which is not for sale: leave such goals out.")
        self.goals = tuple(goals)
        self._begins = {"test": 0, "eval": test_size, "train": test_size + eval_size, "end": len(goals)}

    @cached_property
    def search_engine(self) -> ProductSearch:
        """The index over all products, built when it is first needed."""
        return ProductSearch(list(self.products.values()))

    def dataset(self, split: str) -> Dataset:
        """
        The goals of one split as rows for a trainer or for [`mem1_trl.evaluation.evaluate_agent`].

        Args:
            split (`str`):
                `"test"`, `"eval"` or `"train"`.

        Returns:
            `datasets.Dataset`: columns `prompt` (the instruction), `goal` (what `reset` wants: the number of the goal in
            `goals`), `instruction` (again, so that a mix-up of shops is noticed), `category` and `weight`.

        Raises:
            `ValueError`: if there is no such split, or it is empty.
        """
        from datasets import Dataset

        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}: pass {', '.join(map(repr, SPLITS))}.")
        ends = {"test": "eval", "eval": "train", "train": "end"}
        numbers = range(self._begins[split], self._begins[ends[split]])
        if not numbers:
            raise ValueError(f"The split {split!r} is empty: load the shop with a larger `{split}_size`.")
        return Dataset.from_list(
            [
                {
                    "prompt": goal.instruction_text,
                    "goal": number,
                    "instruction": goal.instruction_text,
                    "category": goal.category,
                    "weight": goal.weight,
                }
                for number in numbers
                for goal in (self.goals[number],)
            ]
        )


def load_webshop(
    items: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    attributes: str | os.PathLike[str] | Mapping[str, Any],
    human_goals: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    reviews: str | os.PathLike[str] | Iterable[Mapping[str, Any]] | None = None,
    num_products: int | None = None,
    price_seed: int = 233,
    test_size: int = 500,
    eval_size: int = 1000,
) -> WebShop:
    """
    A shop from WebShop's own files (arXiv 2207.01206; its `setup.sh` fetches them, nobody else may pass them on).

    Goals come in the order of the original (shuffled with seed 233), so that the splits are those of published results: the
    first 500 goals test, the next 1,000 evaluate, the rest train. The original draws price limits and the price within a range
    anew at every start; here `price_seed` fixes them.

    Args:
        items (`str`, `os.PathLike` or iterable of mappings):
            Path of `items_shuffle.json` or `items_shuffle_1000.json`, or its content.
        attributes (`str`, `os.PathLike` or `Mapping`):
            Path of `items_ins_v2.json` or `items_ins_v2_1000.json`, or its content.
        human_goals (`str`, `os.PathLike` or `Mapping`, *optional*):
            Path of `items_human_ins.json`, or its content: goals written by people, those of published results. `None` makes
            goals from the attributes and options of the products.
        reviews (`str`, `os.PathLike` or iterable of mappings, *optional*):
            Path of `reviews.json`, or its content. The original's public data has none.
        num_products (`int`, *optional*):
            Takes the first products only.
        price_seed (`int`, *optional*, defaults to `233`):
            Draws price limits, and prices where the files give a range.
        test_size (`int`, *optional*, defaults to `500`):
            Goals of the split `"test"`.
        eval_size (`int`, *optional*, defaults to `1000`):
            Goals of the split `"eval"`. With the small files, say how many there shall be.

    Raises:
        `FileNotFoundError`: if a file does not exist.
        `ValueError`: if a file is not what it should be, or has too few goals for the splits.

    Example:

    ```python
    >>> from mem1_trl.environments import WebShopEnvironment, load_webshop

    >>> shop = load_webshop(
    ...     items="data/items_shuffle_1000.json",
    ...     attributes="data/items_ins_v2_1000.json",
    ...     human_goals="data/items_human_ins.json",
    ...     test_size=100,
    ...     eval_size=0,
    ... )  # doctest: +SKIP
    >>> make_env = WebShopEnvironment.factory(shop)  # doctest: +SKIP
    ```
    """
    records = _read(items, "items", list)
    known = _read(attributes, "attributes", dict)
    products = read_products(
        records[:num_products], known, _read(reviews, "reviews", list) if reviews is not None else ()
    )
    if not products:
        raise ValueError(
            "`items` holds no product with a usable asin: check that it is WebShop's items_shuffle*.json."
        )
    prices = draw_prices(products, price_seed)
    generator = random.Random(price_seed)
    if human_goals is None:
        goals = make_synthetic_goals(products, known, prices, generator)
    else:
        instructions = _read(human_goals, "human_goals", dict)
        goals = make_human_goals(products, instructions, prices, generator)
    random.Random(_GOAL_SEED).shuffle(goals)
    return WebShop(products, goals, prices, test_size, eval_size)


@cache
def load_bundled_webshop() -> WebShop:
    """
    The small shop of our own making: 64 products of 8 departments, 192 goals (48 test, 16 eval, 128 train).

    Made by `scripts/build_webshop.py` from word lists of ours, in the schema of WebShop's files. No brand in it exists.
    """
    content = gzip.decompress((files("mem1_trl") / "data" / "webshop.json.gz").read_bytes())
    return load_webshop(**json.loads(content), test_size=48, eval_size=16)


def _read(source: Any, name: str, kind: type) -> Any:
    """The content of a JSON file, or what was passed instead of its path."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no file {str(path)!r} for `{name}`: WebShop's data is fetched by the `setup.sh` of its repository."
            )
        with path.open(encoding="utf-8") as file:
            source = json.load(file)
    if isinstance(source, Mapping) != (kind is dict):
        raise ValueError(
            f"`{name}` holds a {type(source).__name__}, but in WebShop's files it is a JSON {'object' if kind is dict else 'list'}: "
            "check that no two files were exchanged."
        )
    return kind(source)
