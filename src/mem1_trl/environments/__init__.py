"""Environments in TRL's protocol: what an agent acts in, one file each."""

from .retrieval_qa import RetrievalQAEnvironment
from .text_worlds import (
    GymnasiumEnvironment,
    OpenEnvEnvironment,
    ScienceWorldEnvironment,
    TextWorldExpressEnvironment,
)
from .webshop import WebShop, WebShopEnvironment, load_webshop

__all__ = [
    "GymnasiumEnvironment",
    "OpenEnvEnvironment",
    "RetrievalQAEnvironment",
    "ScienceWorldEnvironment",
    "TextWorldExpressEnvironment",
    "WebShop",
    "WebShopEnvironment",
    "load_webshop",
]
