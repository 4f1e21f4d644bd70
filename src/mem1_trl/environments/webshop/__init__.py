"""WebShop (arXiv 2207.01206): the shop, its pages in text, its reward, and the loader for its files."""

from .environment import WebShopEnvironment
from .goals import Goal
from .products import Product, Review
from .reward import PurchaseScore, score_purchase, spacy_nouns, title_words
from .shop import WebShop, load_bundled_webshop, load_webshop

__all__ = [
    "Goal",
    "Product",
    "PurchaseScore",
    "Review",
    "WebShop",
    "WebShopEnvironment",
    "load_bundled_webshop",
    "load_webshop",
    "score_purchase",
    "spacy_nouns",
    "title_words",
]
