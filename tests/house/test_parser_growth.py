"""Everything that reads text of models, environments or the web takes time in proportion to it, on the most hostile shapes."""

from __future__ import annotations

import pytest
from support.growth import RATIO, growth
from support.readers import READERS


@pytest.mark.parametrize("what", READERS)
def test_the_time_to_read_grows_with_the_text(what):
    reader = READERS[what]
    for name, shape in reader.shapes.items():
        assert growth(reader.call, shape, reader.sizes) < RATIO, name
