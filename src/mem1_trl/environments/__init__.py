"""Environments in TRL's protocol, one file each; and, for your own, [`ProcessEnvironment`] and [`idempotent`]."""

from ..environment_runtime.errors import idempotent
from ..environment_runtime.process import ProcessEnvironment
from .retrieval_qa import RetrievalQAEnvironment
from .text_worlds import GymnasiumEnvironment, OpenEnvEnvironment, ScienceWorldEnvironment, TextWorldExpressEnvironment
from .web_qa import WebQAEnvironment
from .webshop import WebShop, WebShopEnvironment, load_webshop

__all__ = [
    "GymnasiumEnvironment",
    "OpenEnvEnvironment",
    "ProcessEnvironment",
    "RetrievalQAEnvironment",
    "ScienceWorldEnvironment",
    "TextWorldExpressEnvironment",
    "WebQAEnvironment",
    "WebShop",
    "WebShopEnvironment",
    "idempotent",
    "load_webshop",
]
