"""What can go wrong with a stored value, as seen by a task."""

from __future__ import annotations

from headrace.errors import HeadraceError, UserError


class LostValueError(UserError, LookupError):
    """A reference resolves neither in memory nor to a durable copy; the message says which task to clear."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreFullError(UserError, MemoryError):
    """There is room for a value neither in memory nor on disk."""


class StoreUnreachableError(HeadraceError, ConnectionError):
    """The store service could not be found nor started, or went away during a request."""


class ForeignStoreError(StoreUnreachableError, PermissionError):
    """The store service, or its folder, is another user's."""
