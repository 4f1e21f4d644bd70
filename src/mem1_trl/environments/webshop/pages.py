"""The pages of the shop as an agent reads them: the text mode of the original, and what can be clicked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .products import Product

PRODUCTS_PER_PAGE = 10

BACK_TO_SEARCH, NEXT_PAGE, PREV_PAGE, BUY_NOW = "Back to Search", "Next >", "< Prev", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")


@dataclass(frozen=True, slots=True)
class Page:
    """
    One page.

    Attributes:
        kind (`str`):
            `"index"`, `"search_results"`, `"item_page"`, `"item_sub_page"` or `"done"`.
        text (`str`):
            What the agent reads.
        clickables (`tuple[str, ...]`):
            What it can click, in lower case, in the order of the original.
        option_names (`dict[str, str]`):
            Those clickables that are values of an option -> name of the option.
        has_search_bar (`bool`):
            Whether the page shows a search bar. (Searching works on every page, as in the original.)
    """

    kind: str
    text: str
    clickables: tuple[str, ...] = ()
    option_names: Mapping[str, str] = field(default_factory=dict)
    has_search_bar: bool = False


def _text(*parts: str) -> str:
    """Parts as the original joins the text nodes of a page; an empty part is no text node."""
    return " [SEP] ".join(part.strip() for part in parts if part)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.lower() for name in names))


def index_page(instruction: str) -> Page:
    """Where every session starts: the instruction and the search bar."""
    text = _text("WebShop", "Instruction:", instruction, "Search")
    return Page("index", text, ("search",), has_search_bar=True)


def results_page(instruction: str, products: Sequence[Product], page: int) -> Page:
    """
    Results of a search, ten a page.

    Args:
        instruction (`str`):
            The goal in words.
        products (`Sequence[Product]`):
            All results.
        page (`int`):
            Number of the page, from 1.
    """
    shown = products[(page - 1) * PRODUCTS_PER_PAGE : page * PRODUCTS_PER_PAGE]
    buttons = [BACK_TO_SEARCH]
    if page > 1:
        buttons.append(PREV_PAGE)
    if page * PRODUCTS_PER_PAGE < len(products):
        buttons.append(NEXT_PAGE)
    listing = [part for product in shown for part in (product.asin, product.title, product.price_tag)]
    head = f"Page {page} (Total results: {len(products)})"
    text = _text("Instruction:", instruction, BACK_TO_SEARCH, head, *buttons[1:], *listing)
    return Page("search_results", text, _unique([*buttons, *(product.asin for product in shown)]))


def item_page(instruction: str, product: Product, show_attributes: bool = False) -> Page:
    """
    A product with its options. Which options are chosen is not shown, as in the text mode of the original.

    Args:
        instruction (`str`):
            The goal in words.
        product ([`Product`]):
            The product.
        show_attributes (`bool`, *optional*, defaults to `False`):
            Whether there is a page with its attributes.
    """
    options = [part for name, values in product.options.items() for part in (name, *values)]
    sub_pages = (*SUB_PAGES, *(("Attributes",) if show_attributes else ()))
    facts = (product.title, f"Price: {product.price_tag}", f"Rating: {product.rating}")
    text = _text("Instruction:", instruction, BACK_TO_SEARCH, PREV_PAGE, *options, *facts, *sub_pages, BUY_NOW)
    names = {value: name for name, values in product.options.items() for value in values}
    buttons = _unique([BACK_TO_SEARCH, PREV_PAGE, *sub_pages, BUY_NOW])
    return Page("item_page", text, tuple(dict.fromkeys([*buttons, *names])), option_names=names)


def item_sub_page(instruction: str, product: Product, name: str) -> Page:
    """
    What a product's page leaves out: its `"Description"`, `"Features"`, `"Reviews"` or `"Attributes"`.

    Args:
        instruction (`str`):
            The goal in words.
        product ([`Product`]):
            The product.
        name (`str`):
            Name of the page.
    """
    if name == "Description":
        content = [product.description or "No Description"]
    elif name == "Features":
        content = list(product.features) or ["No Features"]
    elif name == "Reviews":
        content = [
            part for review in product.reviews for part in (f'"{review.title}"', review.score, review.body)
        ] or ["No reviews found"]
    else:
        content = [*product.attributes, product.category, product.query, product.product_category]
    text = _text("Instruction:", instruction, BACK_TO_SEARCH, PREV_PAGE, *content)
    return Page("item_sub_page", text, _unique([BACK_TO_SEARCH, PREV_PAGE]))


def done_page(asin: str, options: Mapping[str, str], reward: float) -> Page:
    """The receipt, with the reward; the empty fields are those that the original leaves empty, spelled as there."""
    purchased = ("asin", asin, "options", json.dumps(dict(options)), "attrs", "None", "category", "None")
    target = ("asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query")
    text = _text(
        "Thank you for shopping with us!",
        "Your code:",
        "None",
        "(Paste it in your MTurk interface.)",
        "Purchased",
        *purchased,
        *("query", "None", "product category", "None", "Target"),
        *target,
        *("Goal", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details", "None"),
    )
    return Page("done", text)
