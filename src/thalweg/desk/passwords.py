"""Passwords are kept as salted scrypt hashes (RFC 7914); a check costs the same for somebody unknown."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import unicodedata

__all__ = ["hash_password", "password_fits"]

LEAST, MOST = 10, 200  # characters
LOG_COST, BLOCK, LANES = 15, 8, 3  # 32 MB, a fifth of a second or so
AT_ONCE = threading.BoundedSemaphore(2)  # so that many sign-ins take neither all memory nor all cores


def hash_password(password: str) -> str:
    """A hash to keep, with its cost and salt.

    Raises:
        ValueError: the password is too short or too long.
    """
    if not LEAST <= len(password) <= MOST:
        raise ValueError(f"the password must have {LEAST} to {MOST} characters, got {len(password)}")
    salt = secrets.token_bytes(16)
    derived = _derived(password, salt, LOG_COST, BLOCK, LANES)
    return f"scrypt${LOG_COST}${BLOCK}${LANES}${salt.hex()}${derived.hex()}"


def password_fits(password: str, kept: str | None) -> bool:
    """Whether a password belongs to a hash; ``None``, for somebody unknown, costs the same and never fits."""
    if len(password) > MOST:
        return False
    _, cost, block, lanes, salt, wanted = (kept or _NOBODY).split("$")
    derived = _derived(password, bytes.fromhex(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(derived, bytes.fromhex(wanted)) and kept is not None


_NOBODY = f"scrypt${LOG_COST}${BLOCK}${LANES}${'00' * 16}${'00' * 32}"


def _derived(password: str, salt: bytes, log_cost: int, block: int, lanes: int) -> bytes:
    # The same password typed on two keyboards may differ in how its accents are encoded.
    plain = unicodedata.normalize("NFKC", password).encode(errors="surrogatepass")
    with AT_ONCE:
        return hashlib.scrypt(
            plain, salt=salt, n=1 << log_cost, r=block, p=lanes, maxmem=(256 << log_cost) * block, dklen=32
        )
