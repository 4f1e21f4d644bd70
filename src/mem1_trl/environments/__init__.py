"""Environments in TRL's protocol, one file each; and, for your own, [`ProcessEnvironment`], [`idempotent`] and [`hidden_method`]."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from ..environment_runtime.errors import idempotent as idempotent
    from ..environment_runtime.process import ProcessEnvironment as ProcessEnvironment
    from .helpers import hidden_method as hidden_method
    from .retrieval_qa import RetrievalQAEnvironment as RetrievalQAEnvironment
    from .text_worlds import GymnasiumEnvironment as GymnasiumEnvironment
    from .text_worlds import OpenEnvEnvironment as OpenEnvEnvironment
    from .text_worlds import ScienceWorldEnvironment as ScienceWorldEnvironment
    from .text_worlds import TextWorldExpressEnvironment as TextWorldExpressEnvironment
    from .web_qa import WebQAEnvironment as WebQAEnvironment
    from .webshop import WebShop as WebShop
    from .webshop import WebShopEnvironment as WebShopEnvironment
    from .webshop import load_webshop as load_webshop

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "GymnasiumEnvironment": "text_worlds",
        "OpenEnvEnvironment": "text_worlds",
        "ProcessEnvironment": ".environment_runtime.process",
        "RetrievalQAEnvironment": "retrieval_qa",
        "ScienceWorldEnvironment": "text_worlds",
        "TextWorldExpressEnvironment": "text_worlds",
        "WebQAEnvironment": "web_qa",
        "WebShop": "webshop",
        "WebShopEnvironment": "webshop",
        "hidden_method": "helpers",
        "idempotent": ".environment_runtime.errors",
        "load_webshop": "webshop",
    },
)
