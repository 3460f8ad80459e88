"""The emitter, by the rules of Node's EventEmitter."""

from __future__ import annotations

import pytest

from matrixrtc import Client, Emitter, Event


def test_listeners_are_called_in_order_and_as_often_as_added() -> None:
    emitter, heard = Emitter(), []
    one, two = lambda x: heard.append(("one", x)), lambda x: heard.append(("two", x))
    emitter.on("e", one).add_listener("e", two).on("e", one).prepend_listener("e", two)
    assert emitter.emit("e", 1) is True
    assert [name for name, _ in heard] == ["two", "one", "two", "one"]
    assert emitter.listeners("e") == [two, one, two, one]
    assert emitter.listener_count("e") == 4
    assert emitter.emit("other") is False


def test_once_is_removed_before_its_call() -> None:
    emitter, heard = Emitter(), []

    def listener(n: int) -> None:
        heard.append((n, emitter.listener_count("e")))
        if n < 3:
            emitter.emit("e", n + 1)

    emitter.once("e", listener).prepend_once_listener("e", listener)
    emitter.emit("e", 1)
    # The second registration was called by the emit inside the first, and so not again.
    assert heard == [(1, 1), (2, 0)]
    assert emitter.event_names() == []


def test_off_removes_one_registration_the_last() -> None:
    emitter = Emitter()

    def one() -> None: ...
    def two() -> None: ...

    emitter.on("e", one).on("e", two).on("e", one).off("e", one)
    assert emitter.listeners("e") == [one, two]
    emitter.remove_listener("e", one).off("e", two).off("e", two)
    assert emitter.event_names() == []


def test_an_emit_goes_on_with_the_listeners_it_began_with() -> None:
    emitter, heard = Emitter(), []

    def first() -> None:
        heard.append("first")
        emitter.off("e", second).on("e", third)

    def second() -> None:
        heard.append("second")

    def third() -> None:
        heard.append("third")

    emitter.on("e", first).on("e", second)
    emitter.emit("e")
    assert heard == ["first", "second"]
    assert emitter.listeners("e") == [first, third]


def test_remove_all() -> None:
    emitter = Emitter()
    emitter.on("a", print).on("b", print).on("c", print)
    assert emitter.remove_all_listeners("b").event_names() == ["a", "c"]
    assert emitter.remove_all_listeners().event_names() == []


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="listener: expected a function, got str"):
        Emitter().on("e", "print")  # type: ignore[arg-type]


def test_a_listener_that_raises_keeps_the_event_from_nobody_else() -> None:
    heard: list[Event] = []

    def broken(_: object) -> None:
        raise RuntimeError("broken listener")

    with Client.host_driven("@a:x", "D", clock="manual") as client:
        session = client.session("!r:x")
        session.on("join_state_changed", broken).on("join_state_changed", heard.append)
        client.on("join_state_changed", heard.append)
        session.join()
        with pytest.raises(RuntimeError, match="broken listener"):
            while client.next_event(0):
                pass
        assert [e.name for e in heard] == ["join_state_changed"] * 2
        assert heard[0].session is session


def test_what_several_listeners_raise_is_raised_together() -> None:
    heard: list[str] = []

    def broken(what: str) -> None:
        raise RuntimeError(what)

    emitter = Emitter().on("e", broken).on("e", broken).on("e", heard.append)
    with pytest.raises(ExceptionGroup) as caught:
        emitter.emit("e", "x")
    assert len(caught.value.exceptions) == 2
    assert heard == ["x"]
