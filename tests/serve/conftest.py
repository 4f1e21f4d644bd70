"""What the tests of servers share."""

from __future__ import annotations

import pytest
from support.serving import PLAIN, SETTINGS

from mem1_trl import Mem1Agent


@pytest.fixture
def agent(actor, tokenizer):
    return Mem1Agent(actor, tokenizer, PLAIN, **SETTINGS)
