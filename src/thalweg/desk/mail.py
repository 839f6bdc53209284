"""Write a message: one template as plain text and as HTML, with the headers that mailboxes look for.

Nothing in it is loaded from anywhere, and nothing says whether it was read.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thalweg.desk.delivery import POLICY
from thalweg.desk.settings import MailSettings

__all__ = ["mail_message", "message_id", "save_message"]


def _templates(form: str, *, autoescape: bool) -> Environment:
    """Templates that write by the macros of the file ``form``."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates" / "mail"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["form"] = form
    return made


TEXT = _templates("as_text.macros", autoescape=False)
HTML = _templates("as_html.macros", autoescape=True)


def message_id(settings: MailSettings) -> str:
    """A new Message-ID, in the name of the desk's own host."""
    return make_msgid(domain=_host(settings))


def mail_message(
    settings: MailSettings,
    to: str,
    subject: str,
    template: str,
    now: float,
    *,
    identifier: str = "",
    unsubscribe: str = "",
    **about: Any,
) -> EmailMessage:
    """A message from ``templates/mail/<template>.mail``, once as text and once as HTML, about ``about``.

    Args:
        now: seconds of 1970, for its date.
        identifier: its Message-ID; a new one when left out.
        unsubscribe: an address that ends a subscription by one POST (RFC 8058), for mail to a list.
    """
    import css_inline

    about |= {"subject": subject, "desk": settings.public_url, "unsubscribe": unsubscribe}
    made = EmailMessage(policy=POLICY)
    made["Message-ID"] = identifier or message_id(settings)
    made["Date"] = format_datetime(
        datetime.datetime.fromtimestamp(now, settings.zone).astimezone(settings.zone)
    )
    made["From"] = settings.sender
    if settings.reply_to:
        made["Reply-To"] = settings.reply_to
    made["To"] = to
    made["Subject"] = " ".join(subject.split())
    made["Auto-Submitted"] = "auto-generated"
    if unsubscribe:
        made["List-Id"] = f"thalweg papers <papers.{_host(settings)}>"
        made["List-Unsubscribe"] = f"<{unsubscribe}>"
        made["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        made["Precedence"] = "bulk"
    text = TEXT.get_template(f"{template}.mail").render(about)
    made.set_content(text.strip() + "\n")
    html = HTML.get_template(f"{template}.mail").render(about)
    inlined = css_inline.CSSInliner(load_remote_stylesheets=False).inline(html)
    made.add_alternative(inlined, subtype="html")
    return made


def save_message(message: EmailMessage, folder: Path, name: str) -> Path:
    """Write a message to ``<name>.eml``, whole or not at all, readable by its owner alone: it holds secrets.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    try:
        with open(handle, "wb") as file:
            file.write(message.as_bytes(policy=POLICY))
        path = folder / f"{name}.eml"
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def _host(settings: MailSettings) -> str:
    return urlsplit(settings.public_url).hostname or "localhost"
