"""A shop: products, prices, goals and their splits, from the user's own WebShop files or from the small bundled shop."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...json_text import read_json
from .goals import Goal, make_human_goals, make_synthetic_goals
from .products import Product, draw_prices, read_products
from .search import ProductSearch

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("test", "eval", "train")

_GOAL_SEED = (
    233  # as in the original, so that the order of the goals, and with it the splits, are those of published results
)


class WebShop:
    """
    Products, prices and goals that the episodes of a shop share. It never changes, so any number of environments may use it.

    Args:
        products (`Sequence[Product]`):
            Products of the shop.
        goals (`Sequence[Goal]`):
            Goals of the customers, in the order of the splits: test, eval, train.
        prices (`Mapping[str, float]`, *optional*):
            Price of each product in dollars, by `asin`; `None` takes them from the products, with seed 233 for price ranges.
        test_size (`int`, *optional*, defaults to `500`):
            Number of goals in the split `"test"`, the first ones; the default is that of the original.
        eval_size (`int`, *optional*, defaults to `1000`):
            Number of goals in the split `"eval"`, the next ones.

    Raises:
        `ValueError`: if there is no product, a goal is for a product that the shop does not have, or no goal is left to train
            on.
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
            raise ValueError(f"test_size and eval_size must be at least 0, got {test_size} and {eval_size}.")
        if len(goals) <= test_size + eval_size:
            raise ValueError(
                f"There are {len(goals)} goals, and test_size={test_size} and eval_size={eval_size} leave none to train "
                "on: pass smaller sizes."
            )
        self.products = {product.asin: product for product in products}
        self.prices = dict(draw_prices(products, _GOAL_SEED) if prices is None else prices)
        unknown = sorted({goal.asin for goal in goals} - set(self.products))
        if unknown:
            raise ValueError(
                f"Every goal must be for a product of the shop, got a goal for {unknown[0]!r}: leave it out."
            )
        self.goals = tuple(goals)
        self._begins = {"test": 0, "eval": test_size, "train": test_size + eval_size, "end": len(goals)}

    @cached_property
    def search_engine(self) -> ProductSearch:
        """The index over all products; it is built on first use."""
        return ProductSearch(list(self.products.values()))

    @cached_property
    def checksum(self) -> str:
        """Tells products, prices and goals apart from others."""
        digest = hashlib.sha256()
        for one in (*self.products.values(), *self.goals, *sorted(self.prices.items())):
            digest.update(repr(one).encode("utf-8", "replace"))
        return digest.hexdigest()[:16]

    def dataset(self, split: str) -> Dataset:
        """
        The goals of one split as rows for a trainer or for [`mem1_trl.evaluation.evaluate_agent`].

        Args:
            split (`str`):
                `"test"`, `"eval"` or `"train"`.

        Returns:
            `datasets.Dataset`: columns `prompt` (the instruction), `goal` (the argument of `reset`: the number of the goal in
            `goals`), `instruction` (again, so that rows of another shop are noticed), `category` and `weight`.

        Raises:
            `ValueError`: if the split does not exist or is empty.
        """
        from datasets import Dataset

        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}.")
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
    A shop from WebShop's own files (arXiv 2207.01206; its `setup.sh` downloads them, they may not be redistributed).

    Goals are in the order of the original (shuffled with seed 233), so that the splits are those of published results: the
    first 500 goals are for testing, the next 1,000 for evaluation, the rest for training. The original draws price limits and
    the price within a range again at every start; here `price_seed` fixes them.

    Args:
        items (`str`, `os.PathLike` or iterable of mappings):
            Path of `items_shuffle.json` or `items_shuffle_1000.json`, or its content.
        attributes (`str`, `os.PathLike` or `Mapping`):
            Path of `items_ins_v2.json` or `items_ins_v2_1000.json`, or its content.
        human_goals (`str`, `os.PathLike` or `Mapping`, *optional*):
            Path of `items_human_ins.json`, or its content: goals written by people, as used for published results. `None` makes
            goals from the attributes and options of the products.
        reviews (`str`, `os.PathLike` or iterable of mappings, *optional*):
            Path of `reviews.json`, or its content. The original's public data has none.
        num_products (`int`, *optional*):
            Number of products to use, from the first one on. `None` uses all.
        price_seed (`int`, *optional*, defaults to `233`):
            Seed for the price limits, and for the prices that the files specify as a range.
        test_size (`int`, *optional*, defaults to `500`):
            Number of goals in the split `"test"`.
        eval_size (`int`, *optional*, defaults to `1000`):
            Number of goals in the split `"eval"`. The small files need a smaller number than the default.

    Raises:
        `FileNotFoundError`: if a file does not exist.
        `ValueError`: if a file has the wrong content, or too few goals for the splits.

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
    The small bundled shop: 64 products in 8 departments, 192 goals (48 test, 16 eval, 128 train).

    `scripts/build_webshop.py` makes it from this project's own word lists, in the schema of WebShop's files. Its brands are
    invented.
    """
    content = gzip.decompress((files("mem1_trl") / "data" / "webshop.json.gz").read_bytes())
    return load_webshop(**read_json(content), test_size=48, eval_size=16)


def _read(source: Any, name: str, kind: type) -> Any:
    """The content of a JSON file, or the content that was passed instead of its path."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no file {str(path)!r} for `{name}`: download WebShop's data with the `setup.sh` of its repository."
            )
        try:
            source = read_json(path.read_bytes(), nan_is_null=True)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): download WebShop's data again.") from None
    if isinstance(source, Mapping) != (kind is dict):
        raise ValueError(
            f"`{name}` must be a JSON {'object' if kind is dict else 'list'} as in WebShop's files, got a {type(source).__name__}: "
            "check that two files were not exchanged."
        )
    return kind(source)
