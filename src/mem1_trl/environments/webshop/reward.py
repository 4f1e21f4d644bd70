"""The reward of WebShop (arXiv 2207.01206, section 3.2): how well the purchase matches the goal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...optional_packages import require
from .goals import Goal
from .products import Product

Nouns = Callable[[str], Sequence[str]]
"""Returns the words of a title that name the product, in lower case."""

# The names that the original reduces an option value to, in its order: the first one that occurs in the value
_COLOR_NAMES = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo "
    "caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal "
    "dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory "
    "ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom "
    "mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand sapphire "
    "seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white "
    "wine yellow"
)
COLORS = tuple(_COLOR_NAMES.split())

_EXACT_OPTIONS = ("size",)
_SIMILAR = 85

_WORD = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)+\.?|[^\W\d_]+")  # abbreviations such as D.o.n. are one word
_FUNCTION_WORD_LIST = (
    "a all an and any are as at be but by can could each either every for from had has have he her his how i if in into is "
    "it its may might more most must my no nor not of off on only or other our out over own per she should so some such "
    "than that the their them then there these they this those to too under until up very via was we were what when which "
    "while who will with within without would you your"
)
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())


@dataclass(frozen=True, slots=True)
class PurchaseScore:
    """
    The reward of a purchase and its parts.

    Attributes:
        reward (`float`):
            `r_type` times the share of the wanted attributes, wanted options and price limit that are met. 0 to 1.
        r_type (`float`):
            Score for the right kind of product: 1, 0.5, 0.1 or 0.
        r_att (`float`):
            Share of the wanted attributes.
        r_option (`float` or `None`):
            Share of the wanted options; `None` if no option was wanted.
        r_price (`float`):
            1 if the price is within the limit, else 0.
        title_score (`float`):
            Share of the words of the wanted title that occur in the title of the purchase.
        query_match, category_match (`bool`):
            Whether both products were found by the same search; whether they share two categories.
    """

    reward: float
    r_type: float
    r_att: float
    r_option: float | None
    r_price: float
    title_score: float
    query_match: bool
    category_match: bool


def score_purchase(
    product: Product, goal: Goal, price: float, options: Mapping[str, str], nouns: Nouns | None = None
) -> PurchaseScore:
    r"""
    The reward of buying `product` with `options` for `goal`:

    $$r = r_{type} \cdot \frac{|U_{att} \cap Y_{att}| + |U_{opt} \cap Y_{opt}| + 1[y_{price} \le u_{price}]}{|U_{att}| + |U_{opt}| + 1}$$

    Args:
        product ([`Product`]):
            Product that was bought.
        goal ([`Goal`]):
            Goal of the episode.
        price (`float`):
            Price in dollars. Options do not change it, as in the original.
        options (`Mapping[str, str]`):
            Option name -> chosen value.
        nouns (`Callable[[str], Sequence[str]]`, *optional*):
            Function that returns the words of a title for `r_type`: [`title_words`] (the default) or [`spacy_nouns`].
    """
    r_type, title_score, query_match, category_match = type_reward(product, goal, nouns or title_words)
    attributes = count_attributes(product, goal.attributes)
    chosen = count_options(product, goal.options, options)
    r_price = float(price <= goal.price_upper)
    wanted = len(goal.attributes) + len(goal.options) + 1
    return PurchaseScore(
        reward=r_type * (attributes + chosen + r_price) / wanted,
        r_type=r_type,
        r_att=attributes / len(goal.attributes) if goal.attributes else 1.0,
        r_option=chosen / len(goal.options) if goal.options else None,
        r_price=r_price,
        title_score=title_score,
        query_match=query_match,
        category_match=category_match,
    )


def type_reward(product: Product, goal: Goal, nouns: Nouns) -> tuple[float, float, bool, bool]:
    """
    Score of the purchase for being the right kind of product.

    It is 1 if both products were found by the same search, share two categories, or if the title of the purchase has more than a
    fifth of the words of the wanted title; else it is 0.5. It is 0.1 if the title has less than a tenth of the words, and 0 if it
    has none.

    Returns:
        `tuple[float, float, bool, bool]`: `r_type`, title score, query match, category match.
    """
    query_match = product.query == goal.query
    category_match = len(_categories(product.product_category) & _categories(goal.product_category)) >= 2
    wanted, bought = list(nouns(goal.name)), set(nouns(product.title))
    title_score = len(bought & set(wanted)) / len(wanted) if wanted else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0
    return r_type, title_score, query_match, category_match


def count_attributes(product: Product, wanted: Sequence[str]) -> int:
    """Number of wanted attributes that resemble an attribute of the product or occur in its title, features or description."""
    text = _texts(product)
    return sum(
        any(similarity(own, attribute) > _SIMILAR for own in product.attributes)
        or any(attribute in part for part in text)
        for attribute in wanted
    )


def count_options(product: Product, wanted: Sequence[str], chosen: Mapping[str, str]) -> int:
    """
    Number of chosen options that resemble a wanted one (sizes must be equal) or occur in the title, features or description.

    Colors are compared by their name alone. The number is at most that of the wanted options. The original has no such bound, so
    that choosing options which the goal does not name can raise its reward above 1.
    """
    goals = [normalize_color(value) for value in wanted]
    text = _texts(product)
    count = 0
    for name, value in chosen.items():
        value = normalize_color(value)
        if name.lower() in _EXACT_OPTIONS:
            found = value in goals
        else:
            found = any(similarity(goal, value) > _SIMILAR for goal in goals)
        count += found or any(value in part for part in text)
    return min(count, len(wanted))


def normalize_color(value: str) -> str:
    """The first known color name that occurs in `value`, or `value` itself: `"black forest"` becomes `"black"`."""
    return next((color for color in COLORS if color in value), value)


def similarity(one: str, other: str) -> int:
    """Similarity of two short texts, 0 to 100, regardless of the order of their words: thefuzz's `token_set_ratio`."""
    fuzz, utils = rapidfuzz()
    one, other = (text.encode("ascii", "ignore").decode() for text in (one, other))
    return round(fuzz.token_set_ratio(one, other, processor=utils.default_process))


def rapidfuzz() -> tuple[Any, Any]:
    """The modules of rapidfuzz that compare texts, and that prepare them."""
    fuzz, utils = (require(f"rapidfuzz.{name}", "webshop", "WebShop's reward") for name in ("fuzz", "utils"))
    return fuzz, utils


def title_words(title: str) -> list[str]:
    """
    The words of a title, in lower case, without function words and numbers: an approximation of its nouns.

    The original keeps the words that spaCy's `en_core_web_lg` tags as nouns or proper nouns; in product titles, which are
    capitalized, these are most words. This rule also keeps adjectives and participles. [`spacy_nouns`] follows the original.
    """
    words = []
    for match in _WORD.finditer(title):
        before, after = title[match.start() - 1 : match.start()], title[match.end() : match.end() + 1]
        word = match[0].lower()
        if not any(side.isdigit() for side in (before, after)) and word not in _FUNCTION_WORDS:
            words.append(word)
    return words


def spacy_nouns(model: str = "en_core_web_lg") -> Nouns:
    """
    The noun filter of the original, for `nouns=`: words that spaCy tags as nouns or proper nouns.

    Args:
        model (`str`, *optional*, defaults to `"en_core_web_lg"`):
            A spaCy pipeline with a tagger. Install it with `python -m spacy download en_core_web_lg`.

    Returns:
        `Callable[[str], list[str]]`: a function that caches the words of the titles it has seen.
    """
    pipeline = require("spacy", "webshop-spacy", "The noun filter of WebShop").load(model)
    seen: dict[str, list[str]] = {}

    def nouns(title: str) -> list[str]:
        if title not in seen:
            seen[title] = [token.text.lower() for token in pipeline(title) if token.pos_ in ("NOUN", "PROPN")]
        return seen[title]

    return nouns


def _categories(path: str) -> set[str]:
    return {part.strip() for part in path.split("›")}


def _texts(product: Product) -> tuple[str, str, str]:
    return product.title.lower(), " ".join(product.features).lower(), product.description.lower()
