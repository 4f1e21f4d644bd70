"""The pages of the shop in the text mode of the original, with their clickable elements."""

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
            Text that is shown to the agent.
        clickables (`tuple[str, ...]`):
            Elements that the agent can click, in lower case, in the order of the original.
        option_names (`dict[str, str]`):
            Clickables that are option values -> name of the option.
        has_search_bar (`bool`):
            Whether the page shows a search bar. (Searching works on every page, as in the original.)
    """

    kind: str
    text: str
    clickables: tuple[str, ...] = ()
    option_names: Mapping[str, str] = field(default_factory=dict)
    has_search_bar: bool = False


def _text(*parts: str) -> str:
    """The parts joined as the original joins the text nodes of a page; empty parts are not text nodes."""
    return " [SEP] ".join(part.strip() for part in parts if part)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.lower() for name in names))


def index_page(instruction: str) -> Page:
    """The page on which every session starts: the instruction and the search bar."""
    text = _text("WebShop", "Instruction:", instruction, "Search")
    return Page("index", text, ("search",), has_search_bar=True)


def results_page(instruction: str, products: Sequence[Product], page: int) -> Page:
    """
    A page of search results, ten per page.

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
    The page of a product with its options. It does not show which options are chosen, as in the text mode of the original.

    Args:
        instruction (`str`):
            The goal in words.
        product ([`Product`]):
            The product.
        show_attributes (`bool`, *optional*, defaults to `False`):
            Whether the page links to a page with the attributes of the product.
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
    A sub-page of a product: its `"Description"`, `"Features"`, `"Reviews"` or `"Attributes"`.

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
    """The receipt with the reward. The original leaves the same fields empty and has the same spelling."""
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
