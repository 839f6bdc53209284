"""A mail server on loopback whose port is its own from the moment on which it is known."""

from __future__ import annotations

import socket
from typing import Any

from aiosmtpd.controller import Controller

PATIENCE = 240.0


class MailServer(Controller):
    """``handler`` takes the mail; a port that is looked for first might be somebody else's by then."""

    def __init__(self, handler: Any, **options: Any) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        super().__init__(handler, hostname="127.0.0.1", port=port, ready_timeout=PATIENCE, **options)

    def _create_server(self) -> Any:
        return self.loop.create_server(self._factory_invoker, sock=self._listening, ssl=self.ssl_context)
