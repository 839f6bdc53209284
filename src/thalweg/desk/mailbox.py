"""E-mail addresses that can be written into a header and a mail server's dialogue as they are."""

from __future__ import annotations

import re
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.utils import formataddr, parseaddr

__all__ = ["mail_address", "named_address"]

# Atoms and dots; what would need quoting, a comment or a literal is refused rather than carried around.
LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def mail_address(text: str, name: str = "address") -> str:
    """The address with its domain in lower-case ASCII.

    Raises:
        ValueError: it is none, or one that not every server takes.
    """
    try:
        found = Address(addr_spec=text.strip())
        domain = found.domain.encode("idna").decode("ascii").lower()
    except (HeaderParseError, ValueError, IndexError, AttributeError):
        raise _refused(name, text) from None
    labels = domain.split(".")
    fits = len(found.username) <= 64 and len(found.username) + len(domain) < 254
    named = len(labels) > 1 or domain == "localhost"
    if not (fits and named and LOCAL.fullmatch(found.username) and all(map(LABEL.fullmatch, labels))):
        raise _refused(name, text)
    return f"{found.username}@{domain}"


def named_address(name: str, text: str) -> str:
    """An address with or without a name before it, as a header takes it.

    Raises:
        ValueError: it is none.
    """
    if not text.isprintable():
        raise _refused(name, text)
    shown, bare = parseaddr(text)
    address = mail_address(bare, name)
    return formataddr((shown, address)) if shown else address


def _refused(name: str, text: str) -> ValueError:
    return ValueError(f"{name} must be an e-mail address such as ada@example.org, got {text[:80]!r}")
