"""The error of numbers that are not finite, which tells what passes from what never works."""

__all__ = ["NotFiniteError"]


class NotFiniteError(ValueError):
    """NaN or infinity where finite numbers are needed; elsewhere, or later, the same call may do."""
