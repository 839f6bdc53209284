"""Send what is due: confirmations that wait, and one digest a day or a week to each subscriber with news.

One process sends at a time, and each message is in the ledger before the server has it.
"""

from __future__ import annotations

import datetime
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path

from filelock import FileLock, Timeout

from thalweg.desk.database import Database
from thalweg.desk.delivery import Delivery, NoServer, Outcome
from thalweg.desk.digests import Digest, News, period
from thalweg.desk.ledger import Ledger, Mail
from thalweg.desk.mail import mail_message, message_id, save_message
from thalweg.desk.problems import Problems
from thalweg.desk.settings import MailSettings
from thalweg.desk.shelf import Shelf
from thalweg.desk.subscriptions import DAY, HOLDS, Subscriber, Subscriptions, subscriber
from thalweg.desk.wants import Wants
from thalweg.desk.wording import paper_text

__all__ = ["Busy", "Postman"]

MOST = 20  # papers that a mail shows; the rest is behind a link


class Busy(Exception):
    """Another process is sending digests."""


@dataclass
class Postman:
    """Sends on behalf of one desk.

    Args:
        most: papers that a mail shows.
        clock: the time in seconds of 1970.
    """

    database: Database
    shelf: Shelf
    settings: MailSettings
    problems: Problems
    most: int = MOST
    clock: Callable[[], float] = time.time
    counts: Counter[str] = field(default_factory=Counter)

    def confirmation(self, request: int, delivery: Delivery | None = None) -> None:
        """Mail the link by which a request is confirmed; once, however often this is called."""
        subscriptions = Subscriptions(self.database)
        claimed = subscriptions.claim(request, self.clock())
        if claimed is None:
            return
        asked, token = claimed
        message = mail_message(
            self.settings,
            asked.address,
            f"Confirm: {asked.every} mail about papers",
            "confirm",
            self.clock(),
            every=asked.every,
            about=_unconfirmed(asked.wants),
            confirm=f"{self.settings.public_url}/subscriptions/confirm/{token}",
            days=round(HOLDS / DAY),
        )
        outcome = Outcome("later")
        try:
            if delivery is not None:
                outcome = delivery.send(message, asked.address)
            else:
                with Delivery(self.settings) as own:
                    outcome = own.send(message, asked.address)
        except NoServer as error:
            self.problems.report("mail server", str(error))
        else:
            self.problems.solved("mail server")
        if outcome.state == "later":
            subscriptions.release(request)
        self.counts[f"confirmation {outcome.state}"] += 1

    def digests(self, every: str | None = None) -> Counter[str]:
        """Send what is due; how many messages ended how, which ``counts`` holds from then on.

        Args:
            every: ``"daily"`` or ``"weekly"`` subscribers alone.

        Raises:
            Busy: another process is at it.
            NoServer: nothing (more) can be sent; what was not sent is still new next time.
        """
        self.counts.clear()
        ledger = Ledger(self.database)
        with self._alone(), Delivery(self.settings) as delivery:
            for left in ledger.recover():
                self.counts["unknown"] += 1
                self._report_unknown(left)
            for request in Subscriptions(self.database).waiting(self.clock()):
                self.confirmation(request, delivery)
            for one in self.due(every):
                self._send(one, ledger, delivery)
        return self.counts

    def dry_run(self, folder: Path, every: str | None = None) -> list[Path]:
        """Write what is due into ``.eml`` files; nothing is sent and nothing counts as sent.

        Raises:
            OSError: a file cannot be written; none is left half.
        """
        return [
            save_message(
                self.message(one, message_id(self.settings)), folder, f"{one.period}-{one.subscriber.id}"
            )
            for one in self.due(every, keep=False)
        ]

    def due(self, every: str | None = None, *, keep: bool = True) -> Iterator[Digest]:
        """Digests with something in them, of those who had none in their period."""
        now, ledger = self.clock(), Ledger(self.database)
        rows = self.database.rows(
            "SELECT * FROM subscribers WHERE NOT paused AND every = ifnull(?, every) ORDER BY id", (every,)
        )
        waiting = [
            (one, when)
            for one in self._read(rows)
            if (when := period(one.every, now, self.settings.zone)) != one.looked
            and not ledger.done(one.id, when)
        ]
        if not waiting:
            return
        since, wants = min(now, *(one.since for one, _ in waiting)), [one.wants for one, _ in waiting]
        new = News(self.database, self.shelf, since, now, wants)
        for what in new.cut if keep else ():
            self.problems.report("digest", what)
        nothing: list[tuple[Subscriber, str]] = []
        for one, when in waiting:
            found = new.digest(one, ledger, when)
            if found.papers:
                yield found
            else:
                nothing.append((one, when))
        if keep and nothing:
            self.counts["nothing new"] += len(nothing)
            ledger.nothing(nothing, now)

    def _read(self, rows: list[sqlite3.Row]) -> Iterator[Subscriber]:
        for row in rows:
            try:
                yield subscriber(row)
            except (TypeError, ValueError, AttributeError):
                self.problems.report("digest", f"subscriber {row['id']} is left out: the row is damaged")

    def message(self, one: Digest, identifier: str, mail: int = 0) -> EmailMessage:
        """The message of a digest; ``mail`` is its number in the ledger, under which the rest is shown."""
        public, who = self.settings.public_url, one.subscriber
        shown, more = one.papers[: self.most], len(one.papers) - self.most
        page = f"{public}/subscriptions/{who.secret}"
        count = len(one.papers)
        return mail_message(
            self.settings,
            who.address,
            _short(shown[0].title if count == 1 else f"{count} papers: {shown[0].title}"),
            "digest",
            self.clock(),
            identifier=identifier,
            unsubscribe=f"{page}/unsubscribe",
            about=f"Your {who.every} digest: {', '.join(who.wants.named) or 'all papers'}",
            papers=[paper_text(paper, public) for paper in shown],
            more=max(more, 0),
            rest=f"{page}/mails/{mail}",
            manage=page,
            every="every day with news" if who.every == "daily" else "every week with news",
        )

    def _send(self, one: Digest, ledger: Ledger, delivery: Delivery) -> None:
        identifier, ids = message_id(self.settings), [paper.id for paper in one.papers]
        mail = ledger.begin(one.subscriber.id, one.period, identifier, ids, one.looked)
        if mail is None:
            return
        who = f"subscriber {one.subscriber.id}"
        try:
            message = self.message(one, identifier, mail.id)
        except Exception as error:  # whatever is wrong with a paper: the others get theirs
            ledger.release(mail)
            self.counts["later"] += 1
            self.problems.report(
                "digest", f"{who}: the mail cannot be written: {type(error).__name__} {error}"
            )
            return
        try:
            outcome = delivery.send(message, one.subscriber.address, before=lambda: ledger.sending(mail))
        except NoServer as error:
            ledger.release(mail)
            self.problems.report("mail server", str(error))
            raise
        if not self.counts.total():
            self.problems.solved("mail server")
        self.counts[outcome.state] += 1
        if outcome.state == "sent":
            ledger.sent(mail)
        elif outcome.state == "unknown":
            ledger.sent(mail, "unknown")
            self._report_unknown(mail)
        elif outcome.state == "later":
            ledger.release(mail)
            self.problems.report("digest", f"{who}: the server said to try later ({outcome.code})")
        elif outcome.state == "refused" and ledger.refused(mail):
            self.problems.report("digest", f"{who} is paused: the address was refused again ({outcome.code})")

    def _report_unknown(self, mail: Mail) -> None:
        day = datetime.datetime.fromtimestamp(mail.began, self.settings.zone).date()
        self.problems.report(
            "digest",
            f"the mail of {day} to subscriber {mail.subscriber} was interrupted while it was sent: "
            f"it may be missing, and is not sent again",
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The system takes the lock from a process that dies."""
        try:
            with FileLock(self.database.folder / "digest.lock", blocking=False):
                yield
        except Timeout:
            raise Busy from None


def _unconfirmed(wants: Wants) -> str:
    """Questions are left out: whoever asks could have this desk mail their text to anybody."""
    named = [*wants.topics, *wants.rooms, *wants.findings]
    if count := len(wants.questions):
        named.append("a question that you will see" if count == 1 else f"{count} questions that you will see")
    return ", ".join(named) or "all papers"


def _short(subject: str) -> str:
    return subject if len(subject) <= 110 else f"{subject[:110].rsplit(' ', 1)[0]} …"
