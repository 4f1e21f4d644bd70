"""Tests of the page of the package: the README without links that lead nowhere there."""

from __future__ import annotations

import re
import runpy

import pytest
from support.doc_blocks import ROOT

package_page = runpy.run_path(str(ROOT / "setup.py"))["package_page"]


def test_no_link_of_the_package_page_needs_a_file_beside_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = re.findall(r"\]\((?!https?://)([^)]+)\)", readme)
    page = package_page(readme)
    assert len(relative) > 10 and all(f"`{path}`" in page for path in relative)
    assert re.findall(r"\]\((?!https?://)[^)]+\)", page) == []
    assert page.count("](https://") == readme.count("](https://")
    assert "pip install mem1-trl\n" in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see [faults](docs/faults.md).", "see faults (`docs/faults.md`)."),
        ("see [docs/faults.md](docs/faults.md)", "see `docs/faults.md`"),
        ("![em](docs/em.png)\n", "(Picture: em, `docs/em.png`.)\n"),
        ("[TRL](https://x.org/a) and [a](b)", "[TRL](https://x.org/a) and a (`b`)"),
        ("reset[query] (nothing)", "reset[query] (nothing)"),
    ],
)
def test_a_link_becomes_the_name_of_its_file(text, shown):
    assert package_page(text) == shown
