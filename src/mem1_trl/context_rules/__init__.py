"""
Rules of context: what the next turn reads, and whether it acts or writes a summary.

[`ContextRule`] is the interface. `RULES` holds those that a configuration can name: `mem1`, `full`, `truncate`, `external`, `compact`,
`on_demand`, `fold`.
"""

from .appended import External as External
from .appended import Full as Full
from .appended import Mem1 as Mem1
from .appended import Truncate as Truncate
from .by_action import Fold as Fold
from .by_action import OnDemand as OnDemand
from .compact import Compact as Compact
from .named import RULES as RULES
from .rule import ContextRule as ContextRule
from .rule import NextTurn as NextTurn
from .rule import Past as Past
