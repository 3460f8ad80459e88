"""An emitter with the rules of Node's EventEmitter, which MatrixRTC sessions have elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

Listener = Callable[..., Any]


class Emitter:
    """Calls listeners in order of registration, the same one twice if it was added twice."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[tuple[Listener, bool]]] = {}

    def on(self, event: str, listener: Listener) -> Self:
        return self._add(event, listener, False, False)

    add_listener = on

    def once(self, event: str, listener: Listener) -> Self:
        return self._add(event, listener, True, False)

    def prepend_listener(self, event: str, listener: Listener) -> Self:
        return self._add(event, listener, False, True)

    def prepend_once_listener(self, event: str, listener: Listener) -> Self:
        return self._add(event, listener, True, True)

    def _add(self, event: str, listener: Listener, once: bool, first: bool) -> Self:
        if not callable(listener):
            raise TypeError(f"listener: expected a function, got {type(listener).__name__}")
        entries = self._listeners.get(event, [])
        self._listeners[event] = [(listener, once), *entries] if first else [*entries, (listener, once)]
        return self

    def off(self, event: str, listener: Listener) -> Self:
        """Removes the listener that was added last, if it is there."""
        entries = self._listeners.get(event, [])
        for i in reversed(range(len(entries))):
            if entries[i][0] == listener:
                self._set(event, entries[:i] + entries[i + 1 :])
                break
        return self

    remove_listener = off

    def _set(self, event: str, entries: list[tuple[Listener, bool]]) -> None:
        if entries:
            self._listeners[event] = entries
        else:
            self._listeners.pop(event, None)

    def remove_all_listeners(self, event: str | None = None) -> Self:
        if event is None:
            self._listeners.clear()
        else:
            self._listeners.pop(event, None)
        return self

    def emit(self, event: str, *args: Any) -> bool:
        """Calls the listeners that are there now; whether there were any."""
        entries = self._listeners.get(event, [])
        for listener, once in entries:
            if once:
                self._set(event, [e for e in self._listeners.get(event, []) if e != (listener, True)])
            listener(*args)
        return bool(entries)

    def listeners(self, event: str) -> list[Listener]:
        return [listener for listener, _ in self._listeners.get(event, [])]

    def listener_count(self, event: str) -> int:
        return len(self._listeners.get(event, []))

    def event_names(self) -> list[str]:
        return list(self._listeners)
