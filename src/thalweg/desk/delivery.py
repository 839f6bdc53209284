"""Hand a message to an SMTP server and know what became of it: sent, refused, for later, or unknown."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from email.utils import parseaddr
from types import TracebackType
from typing import Literal

from thalweg.desk.settings import MailSettings

__all__ = ["Delivery", "NoServer"]

WAIT = 30.0  # seconds for each answer of the server
PATIENCE = (
    300.0  # seconds for the one after the message: who gives up too early does not know what became of it
)
# Long addresses in headers are not folded, which would encode them; bodies are made of 7-bit lines.
POLICY = WIRE.clone(cte_type="7bit", max_line_length=900)


class NoServer(Exception):
    """Nothing can be sent at present; the message says why and holds no password."""


@dataclass(frozen=True)
class Outcome:
    """``refused`` blames the address, ``later`` surely was not sent, ``unknown`` may have been.

    ``code`` is the server's last answer, 0 without one.
    """

    state: Literal["sent", "refused", "later", "unknown", "withdrawn"]
    code: int = 0


class Delivery:
    """A connection to the configured server, made when the first message needs it.

    Raises:
        NoServer: on sending, the server cannot be reached, refuses the sign-in or the sender.
    """

    def __init__(self, settings: MailSettings) -> None:
        self._settings = settings
        self._server: smtplib.SMTP | None = None

    def __enter__(self) -> Delivery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def send(self, message: EmailMessage, to: str, *, before: Callable[[], bool] = lambda: True) -> Outcome:
        """Send to one address.

        Args:
            before: called when the server has agreed to take the message and before it gets it, the last
                moment at which it surely is not sent; False withdraws it.
        """
        wire = message.as_bytes(policy=POLICY)
        server = self._begun()
        try:
            code, answer = server.rcpt(to)
            if not 200 <= code < 300:
                self._reset()
                return Outcome("refused" if _blames_address(code, answer) else "later", code)
        except OSError:
            self._leave()
            return Outcome("later")
        if not before():
            self._reset()
            return Outcome("withdrawn")
        try:
            if server.sock is not None:
                server.sock.settimeout(PATIENCE)
            code, answer = server.data(wire)
        except smtplib.SMTPDataError as error:
            self._reset()
            return Outcome("later", error.smtp_code)
        except OSError:
            self._leave()
            return Outcome("unknown")
        if server.sock is not None:
            server.sock.settimeout(WAIT)
        if 200 <= code < 300:
            return Outcome("sent", code)
        self._reset()
        if not 400 <= code < 600:
            return Outcome("unknown", code)
        return Outcome("refused" if _blames_address(code, answer) else "later", code)

    def _begun(self) -> smtplib.SMTP:
        """A server that waits for a recipient; one that hung up since the last message is called again."""
        sender = parseaddr(self._settings.sender)[1]
        for fresh in (self._server is None, True):
            server = self._server = self._server or self._connected()
            try:
                code, _ = server.mail(sender)
            except OSError as error:
                self._leave()
                if fresh:
                    raise NoServer(f"the mail server hung up: {_plain(error)}") from None
                continue
            if 200 <= code < 300:
                return server
            self._leave()
            if fresh:
                raise NoServer(f"the mail server refuses the sender ({code})")
        raise AssertionError("unreachable")

    def _connected(self) -> smtplib.SMTP:
        of = self._settings
        try:
            server: smtplib.SMTP
            if of.security == "ssl":
                server = smtplib.SMTP_SSL(
                    of.host, of.port, timeout=WAIT, context=ssl.create_default_context()
                )
            else:
                server = smtplib.SMTP(of.host, of.port, timeout=WAIT)
            try:
                server.ehlo_or_helo_if_needed()
                if of.security == "starttls":
                    server.starttls(context=ssl.create_default_context())
                    server.ehlo()
                if of.user:
                    server.login(of.user, of.password)
            except BaseException:
                server.close()
                raise
        except smtplib.SMTPAuthenticationError as error:
            raise NoServer(f"the mail server refuses the user or the password ({error.smtp_code})") from None
        except OSError as error:
            raise NoServer(f"the mail server cannot be reached: {_plain(error)}") from None
        return server

    def _reset(self) -> None:
        try:
            if self._server is not None:
                self._server.rset()
        except OSError:
            self._leave()

    def _leave(self) -> None:
        server, self._server = self._server, None
        try:
            if server is not None:
                server.quit()
        except OSError:
            pass


def _blames_address(code: int, answer: bytes) -> bool:
    """Whether a permanent refusal is about the mailbox; 5.7 (RFC 3463) is about who sends and what."""
    return 500 <= code < 600 and not re.match(rb"5\.7\.", answer)


def _plain(error: Exception) -> str:
    """The reason in one line; of the server's answer only the code, since it may repeat what it was sent."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"it answers {error.smtp_code}"
    return " ".join(str(error).split()) or type(error).__name__
