"""Changing what one object of a user's class does, in place: the object gets a subclass of its own class."""

from __future__ import annotations

from typing import Any

from entropy_chains.errors import SettingsError


class Added:
    """Base of what is put before a user's class."""

    def __init_subclass__(cls, **kwargs: Any):
        """Nothing: the class that is made is the user's own to all who see it, so no registry or rule of theirs is told of it."""


def subclass(kind: type, added: type, remedy: str, **attributes: Any) -> Any:
    """A subclass of ``kind`` with ``added`` before it, under the name and with the text of ``kind``.

    Args:
        kind: the user's class.
        added: a subclass of :class:`Added`.
        remedy: what to use where it cannot be made.
        attributes: those of the class.

    Raises:
        SettingsError: the class does not allow it.
    """
    identity = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    try:
        return type(kind)(kind.__name__, (added, kind), {**identity, **attributes})
    except Exception as error:  # whatever a metaclass of theirs raises
        raise SettingsError(f"{kind.__name__} allows no subclass ({type(error).__name__}: {error}): {remedy}") from error


def own_class(changed: object) -> Any:
    """The class that an object had before it was given one by :func:`subclass`."""
    return type(changed).__bases__[-1]


def give_class(thing: object, kind: type) -> None:
    """Set the class of an object, also where its own class checks what is set."""
    object.__setattr__(thing, "__class__", kind)


def unpickled(kind: type, state: Any, changed: type) -> Any:
    """An object as it was pickled under the class ``changed``; its own class ``kind`` reads the state."""
    thing: Any = object.__new__(kind)
    thing.__setstate__(state)
    give_class(thing, changed)
    return thing
