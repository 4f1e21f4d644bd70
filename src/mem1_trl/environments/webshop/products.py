"""The products of the shop, in the form that the pages, the search and the reward read."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_DEFAULT_PRICE = 100.0
_NO_NUMBER = re.compile(r"[^\d.]")


@dataclass(frozen=True, slots=True)
class Review:
    """
    One customer review.

    Attributes:
        title (`str`):
            Headline.
        score (`str`):
            Stars as written, such as `"5.0"`.
        body (`str`):
            Text.
    """

    title: str
    score: str
    body: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """
    One product.

    Attributes:
        asin (`str`):
            Its identifier, unique in the shop; agents click on it.
        title (`str`):
            Name.
        category (`str`):
            Department, such as `"beauty"`.
        query (`str`):
            Search that found the product, in lower case: a name of its kind, such as `"face cream"`.
        product_category (`str`):
            Path of categories, separated by `"›"`.
        description (`str`):
            Text of the page Description.
        features (`tuple[str, ...]`):
            Lines of the page Features.
        attributes (`tuple[str, ...]`):
            Short properties, such as `"long lasting"`; hidden from the agent unless the environment shows them.
        options (`dict[str, tuple[str, ...]]`):
            Option name -> values to choose from, both in lower case.
        pricing (`tuple[float, ...]`):
            Price in dollars, or lowest and highest price; empty if unknown.
        reviews (`tuple[Review, ...]`):
            Text of the page Reviews.
        rating (`str`):
            Mean stars as written, or `"N.A."`.
    """

    asin: str
    title: str
    category: str = ""
    query: str = ""
    product_category: str = ""
    description: str = ""
    features: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pricing: tuple[float, ...] = ()
    reviews: tuple[Review, ...] = ()
    rating: str = "N.A."

    @property
    def price_tag(self) -> str:
        """The price as pages show it; a product without one costs 100 dollars, as in the original."""
        if not self.pricing:
            return f"${_DEFAULT_PRICE}"
        return " to ".join(f"${price}" for price in self.pricing[:2])

    @property
    def search_text(self) -> str:
        """Text of the product for the search engine: title, description, first feature and options."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        return " ".join([self.title, self.description, *self.features[:1], options]).lower()


def read_products(
    items: Iterable[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    reviews: Iterable[Mapping[str, Any]] = (),
) -> list[Product]:
    """
    Products from records in the schema of WebShop's `items_shuffle*.json`, cleaned by the rules of the original.

    Records without a usable `asin` (longer than ten characters, or `"nan"`) and further records of the same `asin` are left out.

    Args:
        items (`Iterable[Mapping]`):
            Records with `asin`, `name`, `category`, `query`, `product_category`, `full_description`, `small_description`,
            `pricing` (such as `"$9.99"` or `"$5.00$7.50"`) and `customization_options`.
        attributes (`Mapping[str, Mapping]`):
            `asin` -> record with `attributes`, as in `items_ins_v2*.json`.
        reviews (`Iterable[Mapping]`, *optional*):
            Records with `asin`, `average_rating` and `reviews`, as in `reviews.json`.

    Raises:
        `ValueError`: if a record lacks a key that every record of the files has.
    """
    reviews_of = {record["asin"]: record for record in reviews}
    products: dict[str, Product] = {}
    for position, item in enumerate(items):
        missing = [key for key in ("asin", "name", "category", "query", "product_category") if key not in item]
        if missing:
            raise ValueError(
                f"Item {position} has no {missing[0]!r} (it has {', '.join(map(repr, item))}): `items` must be a list in the "
                "schema of WebShop's items_shuffle*.json."
            )
        asin = item["asin"]
        if asin == "nan" or len(asin) > 10 or asin in products:
            continue
        record = reviews_of.get(asin, {})
        products[asin] = Product(
            asin=asin,
            title=item["name"],
            category=item["category"],
            query=item["query"].lower().strip(),
            product_category=item["product_category"],
            description=item.get("full_description") or "",
            features=_lines(item.get("small_description")),
            # The original's placeholder for products without attributes, which matches no goal
            attributes=tuple(attributes.get(asin, {}).get("attributes") or ("DUMMY_ATTR",)),
            options=_read_options(item.get("customization_options") or {}),
            pricing=_read_pricing(item.get("pricing")),
            reviews=tuple(_read_review(review) for review in record.get("reviews", ())),
            rating=str(record.get("average_rating", "N.A.")),
        )
    return list(products.values())


def draw_prices(products: Sequence[Product], seed: int) -> dict[str, float]:
    """
    The price of each product in dollars, by `asin`.

    For a price range, the price is drawn from it. The original draws again at every start, without a seed.
    """
    generator = random.Random(seed)
    prices = {}
    for product in products:
        if len(product.pricing) > 1:
            prices[product.asin] = generator.uniform(*product.pricing[:2])
        else:
            prices[product.asin] = product.pricing[0] if product.pricing else _DEFAULT_PRICE
    return prices


def _lines(text: Any) -> tuple[str, ...]:
    if text is None:
        return ()
    return tuple(text) if isinstance(text, list) else (text,)


def _read_options(customization: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        name.lower(): tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
        for name, contents in customization.items()
        if contents is not None
    }


def _read_pricing(text: str | None) -> tuple[float, ...]:
    """`"$5.00$7.50"` becomes `(5.0, 7.5)`."""
    if not text:
        return ()
    numbers = [_NO_NUMBER.sub("", part) for part in text.split("$")[1:]]
    return tuple(float(number) for number in numbers if number)[:2]


def _read_review(review: Mapping[str, Any]) -> Review:
    return Review(
        title=str(review.get("title", "")),
        score=str(review.get("score", review.get("stars", ""))),
        body=str(review.get("body", review.get("review", ""))),
    )
