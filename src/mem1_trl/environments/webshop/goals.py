"""Shopping goals: written by people, or made from a product's attributes and options as in WebShop."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .products import Product

NO_PRICE_LIMIT = 1000000.0
"""Price limit of a goal that does not name one."""

_LIMITS = [10.0 * step for step in range(1, 100)]


@dataclass(frozen=True, slots=True)
class Goal:
    """
    One shopping task.

    Attributes:
        asin (`str`):
            Identifier of the product that the goal was written for. Other products may satisfy it just as well.
        instruction_text (`str`):
            Instruction that is shown to the agent.
        attributes (`tuple[str, ...]`):
            Attributes that the reward looks for.
        options (`tuple[str, ...]`):
            Values of the options that the reward looks for.
        price_upper (`float`):
            Maximum price of the product in dollars.
        name, query, product_category, category (`str`):
            Fields of the product that the goal was written for; they define the right kind of product.
        weight (`float`):
            Relative frequency with which the original draws this goal: 1 for goals written by people; for generated goals the
            mean, over the attributes of the goal, of one over the count of the attribute.
    """

    asin: str
    instruction_text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()
    price_upper: float = NO_PRICE_LIMIT
    name: str = ""
    query: str = ""
    product_category: str = ""
    category: str = ""
    weight: float = 1.0


def make_human_goals(
    products: Iterable[Product],
    instructions: Mapping[str, Sequence[Mapping[str, Any]]],
    prices: Mapping[str, float],
    generator: random.Random,
) -> list[Goal]:
    """
    Goals written by people (WebShop, arXiv 2207.01206, section 3.3).

    Args:
        products (`Iterable[Product]`):
            The products of the shop.
        instructions (`Mapping[str, Sequence[Mapping]]`):
            `asin` -> records with `instruction`, `instruction_attributes` and `instruction_options`, as in
            `items_human_ins.json`. Records without attributes are left out, as in the original.
        prices (`Mapping[str, float]`):
            Price of each product in dollars.
        generator (`random.Random`):
            Draws the price limits.
    """
    goals = []
    for product in products:
        for record in instructions.get(product.asin, ()):
            attributes = tuple(record["instruction_attributes"])
            if not attributes:
                continue
            options = record["instruction_options"]
            limit, text = _price_limit(prices[product.asin], generator)
            goals.append(
                _goal(
                    product,
                    instruction_text=record["instruction"].strip(".") + text,
                    attributes=attributes,
                    options=tuple(options.values() if isinstance(options, Mapping) else options),
                    price_upper=limit,
                )
            )
    return goals


def make_synthetic_goals(
    products: Iterable[Product],
    attributes: Mapping[str, Mapping[str, Any]],
    prices: Mapping[str, float],
    generator: random.Random,
) -> list[Goal]:
    """
    One goal for each combination of a product's options.

    Args:
        products (`Iterable[Product]`):
            The products of the shop.
        attributes (`Mapping[str, Mapping]`):
            `asin` -> record with `instruction` and `instruction_attributes`, as in `items_ins_v2*.json`. Products without
            an instruction have no goal.
        prices (`Mapping[str, float]`):
            Price of each product in dollars.
        generator (`random.Random`):
            Draws the price limits, one for all goals of a product.
    """
    goals = []
    for product in products:
        record = attributes.get(product.asin, {})
        instruction, wanted = record.get("instruction"), tuple(record.get("instruction_attributes") or ())
        if not instruction or not wanted:
            continue
        limit, text = _price_limit(prices[product.asin], generator)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            chosen = ", and ".join(f"{name}: {value}" for name, value in zip(names, values))
            goals.append(
                _goal(
                    product,
                    instruction_text=f"{instruction}{' with ' + chosen if chosen else ''}{text}",
                    attributes=wanted,
                    options=values,
                    price_upper=limit,
                )
            )
    count = Counter(attribute for goal in goals for attribute in goal.attributes)
    return [
        replace(goal, weight=sum(1 / count[attribute] for attribute in goal.attributes) / len(goal.attributes))
        for goal in goals
    ]


def _goal(product: Product, **kwargs: Any) -> Goal:
    return Goal(
        asin=product.asin,
        name=product.title,
        query=product.query,
        product_category=product.product_category,
        category=product.category,
        **kwargs,
    )


def _price_limit(price: float, generator: random.Random) -> tuple[float, str]:
    """The larger of two limits drawn from the four next multiples of ten dollars above the price, and its wording."""
    above = [limit for limit in _LIMITS if limit > price][:4]
    if len(above) < 2:
        return NO_PRICE_LIMIT, ""
    limit = max(generator.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"
