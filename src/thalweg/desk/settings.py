"""How the desk sends mail: environment variables, or a file that its owner alone can read.

Links in mail and feeds start with a configured address: a request's Host header is whatever its sender wrote.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from thalweg._core.checks import check_choice, nearest
from thalweg.desk.mailbox import named_address

__all__ = ["MailSettings", "mail_settings", "public_address"]

FILE = "mail.toml"
KEYS = ("host", "port", "security", "user", "password", "from", "reply_to", "zone", "public_url")
SECURITY = {"starttls": 587, "ssl": 465, "none": 25}  # with the port that is usual
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class MailSettings:
    """``security`` is starttls, ssl or none; ``zone`` says when a day begins, None is this machine's."""

    host: str
    port: int
    security: str
    sender: str
    public_url: str
    user: str = ""
    password: str = field(default="", repr=False)
    reply_to: str = ""
    zone: ZoneInfo | None = None


def mail_settings(
    folder: str | Path, *, public_url: str = "", environ: Mapping[str, str] | None = None
) -> MailSettings | None:
    """The settings, or None where no server is named.

    A key is looked for in the environment (``THALWEG_MAIL_HOST``, ``THALWEG_PUBLIC_URL``), then in
    ``mail.toml``. Neither values nor errors ever show the password.

    Args:
        folder: the desk's data folder, where ``mail.toml`` is.
        public_url: stands before both.

    Raises:
        ValueError: a value is not allowed, or others can read the file.
    """
    given = _given(Path(folder), os.environ if environ is None else environ)
    host = given.get("host", "")
    if not host:
        return None
    security = given.get("security", "starttls")
    check_choice("mail security", security, tuple(SECURITY))
    user, password = given.get("user", ""), given.get("password", "")
    if bool(user) != bool(password):
        raise ValueError("mail user and password must be given together, got one of them")
    if password and security == "none" and host not in LOCAL:
        raise ValueError(
            "mail security must be starttls or ssl where a password is sent to another machine, "
            f"got none for {host}"
        )
    if not given.get("from"):
        raise ValueError("mail from must be the address that mail comes from, got nothing")
    url = public_url or given.get("public_url", "")
    if not url:
        raise ValueError(
            "public_url must be the address at which readers reach the desk (links in mail start with it), "
            "got nothing"
        )
    reply_to = given.get("reply_to", "")
    return MailSettings(
        host=host,
        port=_port(given.get("port", SECURITY[security])),
        security=security,
        sender=named_address("mail from", given["from"]),
        public_url=public_address(url),
        user=user,
        password=password,
        reply_to=named_address("mail reply_to", reply_to) if reply_to else "",
        zone=_zone(given.get("zone", "")),
    )


def public_address(url: str) -> str:
    """The scheme and host that links start with, without a slash at the end.

    Raises:
        ValueError: it is no such address.
    """
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
        if (
            plain
            and parts.username is None
            and not (parts.query or parts.fragment or set(url) & set("\r\n "))
        ):
            host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
            return f"{parts.scheme}://{host}{port}"
    except ValueError:
        pass
    raise ValueError(f"public_url must be like https://desk.example.org, without a path, got {url!r}")


def _given(folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    path = folder / FILE
    if path.exists():
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise ValueError(f"{FILE} must be readable by its owner alone: chmod 600 {FILE}")
        try:
            found = tomllib.loads(path.read_text(encoding="utf8"))
        except ValueError:
            # The parser's message may quote the line, and the line may be the password's.
            raise ValueError(f"{FILE} must be TOML of the form key = value, which it is not") from None
        for key in found:
            if key not in KEYS:
                raise ValueError(f"{FILE}: {key!r} must be one of {', '.join(KEYS)}{nearest(key, KEYS)}")
    for key in KEYS:
        name = "THALWEG_PUBLIC_URL" if key == "public_url" else f"THALWEG_MAIL_{key.upper()}"
        if environ.get(name):
            found[key] = environ[name]
    for key, value in found.items():
        if key != "port" and not isinstance(value, str):
            raise ValueError(f"{key} must be a text, got a {type(value).__name__}")
    return found


def _port(value: Any) -> int:
    try:
        port = int(value)
    except (TypeError, ValueError):
        port = 0
    if not 1 <= port <= 65535:
        raise ValueError(f"mail port must be from 1 to 65535, got {value!r}")
    return port


def _zone(name: str) -> ZoneInfo | None:
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"mail zone must be a time zone such as Europe/Berlin, got {name!r}") from None
