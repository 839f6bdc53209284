"""Where to go after a form: a path of this desk, whatever the form says."""

from __future__ import annotations

import re

# Browsers read "//host" and "/\host" as another site, and drop tabs and line ends before they do.
LOCAL = re.compile(r"/(?!/)[!-\[\]-~]{0,2000}")


def local_path(text: str, otherwise: str = "/papers") -> str:
    """``text`` if it is a path of this site, else ``otherwise``."""
    return text if LOCAL.fullmatch(text) else otherwise
