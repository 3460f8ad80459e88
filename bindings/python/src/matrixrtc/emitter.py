"""An emitter with the rules of Node's EventEmitter, which MatrixRTC sessions have elsewhere; but a
listener that raises, which ends a Node process, ends nothing here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

Listener = Callable[..., Any]


class _Entry:
    """One registration. The same listener added twice has two."""

    __slots__ = ("fired", "listener", "once")

    def __init__(self, listener: Listener, once: bool) -> None:
        self.listener, self.once, self.fired = listener, once, False


class Emitter:
    """Calls listeners in order of registration, the same one twice if it was added twice."""

    def __init__(self) -> None:
        # The tuples are replaced, never changed: an emit under way goes on with the one it has.
        self._entries: dict[str, tuple[_Entry, ...]] = {}

    def on(self, event: str, listener: Listener) -> Self:
        return self._add(event, _Entry(listener, once=False), first=False)

    add_listener = on

    def once(self, event: str, listener: Listener) -> Self:
        """Adds a listener that is removed before its first call."""
        return self._add(event, _Entry(listener, once=True), first=False)

    def prepend_listener(self, event: str, listener: Listener) -> Self:
        """Adds a listener that is called before those that are there already."""
        return self._add(event, _Entry(listener, once=False), first=True)

    def prepend_once_listener(self, event: str, listener: Listener) -> Self:
        return self._add(event, _Entry(listener, once=True), first=True)

    def _add(self, event: str, entry: _Entry, first: bool) -> Self:
        if not callable(entry.listener):
            raise TypeError(f"listener: expected a function, got {type(entry.listener).__name__}")
        entries = self._entries.get(event, ())
        self._entries[event] = (entry, *entries) if first else (*entries, entry)
        return self

    def off(self, event: str, listener: Listener) -> Self:
        """Removes one registration of the listener, the last of them, if there is any."""
        for entry in reversed(self._entries.get(event, ())):
            if entry.listener == listener:
                self._remove(event, entry)
                break
        return self

    remove_listener = off

    def _remove(self, event: str, entry: _Entry) -> None:
        left = tuple(e for e in self._entries.get(event, ()) if e is not entry)
        if left:
            self._entries[event] = left
        else:
            self._entries.pop(event, None)

    def remove_all_listeners(self, event: str | None = None) -> Self:
        if event is None:
            self._entries.clear()
        else:
            self._entries.pop(event, None)
        return self

    def emit(self, event: str, *args: Any) -> bool:
        """Calls the listeners that are there now; whether there were any. What one of them raises is
        raised here when all have been called: as it is, or several as an ExceptionGroup."""
        entries = self._entries.get(event, ())
        raised: list[Exception] = []
        for entry in entries:
            if entry.once:
                if entry.fired:
                    continue
                entry.fired = True
                self._remove(event, entry)
            try:
                entry.listener(*args)
            except Exception as e:
                raised.append(e)
        if raised:
            raise raised[0] if len(raised) == 1 else ExceptionGroup(f"listeners of {event}", raised)
        return bool(entries)

    def listeners(self, event: str) -> list[Listener]:
        return [entry.listener for entry in self._entries.get(event, ())]

    def listener_count(self, event: str) -> int:
        return len(self._entries.get(event, ()))

    def event_names(self) -> list[str]:
        return list(self._entries)
