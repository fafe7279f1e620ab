"""How a training ends when the user stops it."""

__all__ = ["Interrupted"]


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user stopped a training; its folder holds all that is needed to go on."""
