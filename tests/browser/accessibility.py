"""What axe-core finds on a page; the tests are skipped where it was not fetched."""

import os
from pathlib import Path

import pytest

AXE = Path(os.environ.get("AXE", Path(__file__).parents[2] / ".venv" / "axe" / "package" / "axe.min.js"))


def serious_faults(page):
    """Violations that axe calls serious or critical: which rule, what it is about, where."""
    if not AXE.is_file():
        if "CI" in os.environ:
            pytest.fail("CI is to have axe-core")
        pytest.skip(f"no {AXE}: make test-browser fetches axe-core where npm is installed")
    page.evaluate(AXE.read_text(encoding="utf8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [
        (one["id"], one["help"], [node["html"][:160] for node in one["nodes"][:3]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
