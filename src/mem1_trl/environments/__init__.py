"""Environments that an agent acts in, in TRL's protocol, one file each."""

from .retrieval_qa import RetrievalQAEnvironment
from .text_worlds import GymnasiumEnvironment, OpenEnvEnvironment, ScienceWorldEnvironment, TextWorldExpressEnvironment
from .web_qa import WebQAEnvironment
from .webshop import WebShop, WebShopEnvironment, load_webshop

__all__ = [
    "GymnasiumEnvironment",
    "OpenEnvEnvironment",
    "RetrievalQAEnvironment",
    "ScienceWorldEnvironment",
    "TextWorldExpressEnvironment",
    "WebQAEnvironment",
    "WebShop",
    "WebShopEnvironment",
    "load_webshop",
]
