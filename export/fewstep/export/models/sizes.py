"""Sizes in constructor arguments of models, which a ``--config`` file may get wrong."""

from __future__ import annotations


def check_whole(least: int = 1, **sizes: object) -> None:
    """Refuse sizes that are no whole number.

    Args:
        least: that they have to be.
        sizes: by the name of the argument.

    Raises:
        ValueError: one is not a whole number, or below ``least``.
    """
    for name, size in sizes.items():
        if type(size) is not int or size < least:
            raise ValueError(f"{name} must be a whole number, at least {least}, got {size!r}")
