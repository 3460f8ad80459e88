"""Holds what really passes through the C interface against the JSON Schemas in schema/.

A schema is found by its file name: event.<name>.json, result.<function>.json and
argument.<function>.json, where <function> is without "mrtc_".
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from referencing import Registry, Resource

from matrixrtc import library

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "schema"


@functools.cache
def _known() -> dict[str, jsonschema.protocols.Validator]:
    contents = {p.name: json.loads(p.read_text()) for p in FOLDER.glob("*.json")}
    resources = [(name, Resource.from_contents(c)) for name, c in contents.items()]
    resources += [(c["$id"], Resource.from_contents(c)) for c in contents.values() if "$id" in c]
    registry: Registry[Any] = Registry().with_resources(resources)
    return {
        name.removesuffix(".json"): jsonschema.validators.validator_for(c)(c, registry=registry)
        for name, c in contents.items()
    }


def _check(name: str, value: Any) -> None:
    assert name in _known(), f"schema/{name}.json is missing"
    _known()[name].validate(value)


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    made = library.raw_call

    def raw_call(name: str, *args: Any) -> tuple[int, bytes | None]:
        status, text = made(name, *args)
        short = name.removeprefix("mrtc_")
        if status == 0:
            for argument in args:
                if isinstance(argument, bytes) and argument[:1] == b"{":
                    _check(f"argument.{short}", json.loads(argument))
        if text is not None:
            value = json.loads(text)
            if status < 0:
                _check("error", value)
            elif short == "client_next_event":
                if value["event"] != "own":  # what a test emits has any form
                    _check(f"event.{value['event']}", value)
            else:
                _check(f"result.{short}", value)
        return status, text

    monkeypatch.setattr(library, "raw_call", raw_call)
