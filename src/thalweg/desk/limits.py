"""How often one may try: a sliding window an action, for each address and for each account.

An endpoint says ``limit(request, "subscribe", account=mail)`` before it does anything. The address is that of
the connection: ``X-Forwarded-For`` counts only from a proxy that ``thalweg desk --proxy`` names.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict, deque
from math import ceil

from fastapi import HTTPException, Request

from thalweg._core.checks import check_choice

__all__ = ["Limits", "limit"]

# How many in how many seconds: of one address, and of one account (a name or an e-mail address).
ALLOWED: dict[str, tuple[tuple[int, float], tuple[int, float]]] = {
    "sign in": ((20, 600), (10, 600)),
    "join": ((20, 600), (20, 600)),
    "subscribe": ((10, 3600), (3, 3600)),
    "vote": ((120, 60), (60, 60)),
    "comment": ((30, 600), (15, 600)),
    "invite": ((30, 600), (30, 600)),
}
MOST = 20_000  # windows in memory; the longest untouched go first


class Limits:
    """Windows in the memory of one process; they start empty with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: OrderedDict[tuple[str, str, str], deque[float]] = OrderedDict()

    def wait(self, key: tuple[str, str, str], most: int, seconds: float, now: float) -> float:
        """0 where one more try is allowed, which is then counted; else the seconds until one is."""
        with self._lock:
            tries = self._tries.setdefault(key, deque())
            self._tries.move_to_end(key)
            while len(self._tries) > MOST:
                self._tries.popitem(last=False)
            while tries and tries[0] <= now - seconds:
                tries.popleft()
            if len(tries) >= most:
                # Rounding must not make a refusal look like 0, which allows.
                return max(tries[0] + seconds - now, 1e-3)
            tries.append(now)
            return 0.0


def limit(request: Request, action: str, *, account: str = "") -> None:
    """Count a try of ``action``, one of ``ALLOWED``, for the asker's address and, if given, for an account.

    Raises:
        HTTPException: 429 with ``Retry-After``, there were too many of late.
    """
    check_choice("action", action, ALLOWED)
    limits: Limits = request.app.state.limits
    of_address, of_account = ALLOWED[action]
    now = time.monotonic()
    wait = limits.wait((action, "address", _address(request)), *of_address, now)
    if account and not wait:
        wait = limits.wait((action, "account", account.casefold()), *of_account, now)
    if wait:
        seconds = max(1, ceil(wait))
        often = f"{seconds} seconds" if seconds < 120 else f"{ceil(seconds / 60)} minutes"
        why = f"too many tries to {action}: wait {often} and try again"
        raise HTTPException(429, why, headers={"Retry-After": str(seconds)})


def _address(request: Request) -> str:
    """Of IPv6 the network: one machine has as many addresses as it likes."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host
