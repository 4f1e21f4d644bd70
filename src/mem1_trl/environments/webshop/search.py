"""The shop's search engine: BM25 over title, description, first feature and options."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ...optional_packages import require
from ...retrieval import Bm25Index
from .products import Product

SEARCH_RETURN_N = 50
"""Maximum number of products that a search returns."""

_WORD = re.compile(r"\w++(?:['’]\w++)*+")
# Lucene's English stop words
_STOPWORD_LIST = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to "
    "was will with"
)
_STOPWORDS = frozenset(_STOPWORD_LIST.split())


class ProductSearch:
    """
    Finds products by keywords.

    The original calls Lucene through pyserini, which needs Java. This is the same ranking (BM25 as Lucene computes it, with
    pyserini's `k1` 0.9 and `b` 0.4) over the same text and by the same steps: lower case, no possessive `'s`, Lucene's stop
    words, Porter stems. Three things differ: how words are split at unusual punctuation, the order of products with equal
    scores, and that a product's identifier can be searched for.

    Args:
        products (`Sequence[Product]`):
            Products of the shop.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self._products = {product.asin: product for product in products}
        stem = stemmer()
        corpus = ((product.asin, _normal(product.search_text, stem)) for product in products)
        self._index = Bm25Index(corpus, k1=0.9, b=0.4)

    def search(self, keywords: str) -> list[Product]:
        """The best products for `keywords`, at most [`SEARCH_RETURN_N`], best first."""
        # A stemmer must stay in one thread, but this object is shared by any number of threads
        [passages] = self._index.search([_normal(keywords, stemmer())], SEARCH_RETURN_N)
        return [self._products[passage.title] for passage in passages]


def stemmer() -> Callable[[list[str]], list[str]]:
    """Porter's stemmer, for one thread."""
    return require("Stemmer", "webshop", "WebShop's search").Stemmer("porter").stemWords


def _normal(text: str, stem: Callable[[list[str]], list[str]]) -> str:
    words = [word.removesuffix("'s").removesuffix("’s") for word in _WORD.findall(text.lower())]
    return " ".join(stem([word for word in words if word not in _STOPWORDS]))
