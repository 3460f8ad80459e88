"""Runs every benchmark, prints a table and writes build/bench.json: `make bench`.

Each row is one figure: `value` in `unit` at `size`; where there is a peer, what it took in the same run and
`ratio` = value / peer_value; where there is a goal, whether it was met.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
LIBRARY = ROOT / "build" / "libmatrixrtc.so"
BARE = BUILD / "libbare.so"
NODE = ROOT / "tests/e2e/jspeer/node_modules/.bin/node"
PYTHON = sys.executable

Row = dict[str, Any]
ROWS: list[Row] = []


def run(*command: object, cwd: pathlib.Path = ROOT, **env: str) -> str:
    """Runs a program; what it printed."""
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=os.environ | env, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: ended with {done.returncode}")
    return done.stdout


def figures(*command: object, **env: str) -> list[Row]:
    return [json.loads(line) for line in run(*command, cwd=ROOT, **env).splitlines()]


def add(
    name: str,
    size: int,
    value: float,
    unit: str,
    *,
    peer: str | None = None,
    peer_value: float | None = None,
    most: float | None = None,
    most_ratio: float | None = None,
) -> None:
    """A row; the goal is a greatest value or a greatest ratio to the peer."""
    ratio = value / peer_value if peer_value else None
    goal, met = None, None
    if most is not None:
        goal, met = f"<= {most:g} {unit}", value <= most
    elif most_ratio is not None and ratio is not None:
        goal, met = f"<= {most_ratio:g}x {peer}", ratio <= most_ratio
    row = {
        "name": name,
        "size": size,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "goal": goal,
        "met": met,
    }
    ROWS.append(row)
    show(row)


def show(row: Row) -> None:
    verdict = {True: "met", False: "NOT MET", None: ""}[row["met"]]
    against = f"{row['peer']} {row['peer_value']:,.2f}" if row["peer_value"] is not None else ""
    ratio = f"{row['ratio']:.3f}x" if row["ratio"] is not None else ""
    value = f"{row['value']:,.2f} {row['unit']}"
    print(
        f"{row['name']:38} {row['size']:>7,} {value:>24}  {against:38} {ratio:>9}  {row['goal'] or '':26} {verdict}",
        flush=True,
    )


def build() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    run("go", "build", "-tags", "goolm", "-o", BUILD / "session", "./bench/session")
    flags = "-s -w -extldflags '-Wl,--wrap=pthread_getattr_np'"
    run("go", "build", "-tags", "goolm", "-buildmode=c-shared", "-ldflags", flags, "-o", BARE, "./bench/bare")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    run(
        os.environ.get("CC", "cc"),
        "-O2",
        "-std=gnu11",
        *warnings,
        "-Iinclude",
        "bench/bench.c",
        "-o",
        BUILD / "bench",
        "-ldl",
        "-lpthread",
    )
    if not NODE.exists():
        run("npm", "ci", "--no-audit", "--no-fund", cwd=ROOT / "tests/e2e/jspeer")
    node = ROOT / "bindings/node"
    if not (node / "node_modules/koffi").exists():
        run("npm", "ci", "--no-audit", "--no-fund", cwd=node)
    run("npm", "run", "build", cwd=node)


def joins() -> None:
    peer = {n: figures(NODE, "bench/js_sdk_join.mjs", n)[0]["value"] for n in (100, 400, 1600)}
    sizes = (100, 400, 1600, 10_000, 100_000)
    for layer, command, most in (
        ("core/session", [BUILD / "session", "joins"], None),
        ("C ABI", [BUILD / "bench", LIBRARY, "ingest"], 10.0),
    ):
        for f in figures(*command, *sizes):
            of = peer.get(f["size"])
            add(
                f"CPU per join, {layer}",
                f["size"],
                f["value"],
                "us",
                peer="matrix-js-sdk 43" if of else None,
                peer_value=of,
                most=most,
            )


def go_bench(package: str, name: str, *flags: str) -> str:
    return run("go", "test", "-tags", "goolm", package, "-run", "xxx", "-bench", name, *flags)


def roster() -> None:
    """What one event costs in calls of any size, beside the same in a small one: of three runs the quickest."""
    found: dict[tuple[str, int], float] = {}
    out = go_bench("./core/session", "Roster", "-benchtime", "0.3s", "-count", "3")
    for what, n, ns in re.findall(r"^BenchmarkRoster/(\w+)/(\d+)\S*\s+\d+\s+([\d.]+) ns/op", out, re.MULTILINE):
        found[what, int(n)] = min(float(ns) / 1000, found.get((what, int(n)), float("inf")))
    if not found:
        sys.exit(f"no figures of the roster in: {out}")
    for (what, n), value in found.items():
        small = None if n == 1000 else found[what, 1000]
        peer = None if small is None else "the same among 1,000"
        add(f"roster: {what.replace('_', ' ')}", n, value, "us", peer=peer, peer_value=small, most_ratio=3)


def keys() -> None:
    """Media keys: what they add to a join, and what each device costs."""
    sizes = (100, 400, 800, 1000, 10_000)

    def least(*command: object) -> dict[int, float]:
        """Of three runs the quickest, since a difference is to be told."""
        runs = [figures(*command) for _ in range(3)]
        return {of[0]["size"]: min(f["value"] for f in of) for of in zip(*runs, strict=True)}

    def js(*what: object) -> dict[int, float]:
        return {n: least(NODE, "bench/js_sdk_join.mjs", n, *what)[n] for n in (100, 400, 800)}

    without, together = least(BUILD / "session", "joins", *sizes), least(BUILD / "session", "keys", *sizes)
    js_without, js_together = js(), js("keys")
    for name, ours, theirs, most in (
        ("CPU per join with keys, core/session", together, js_together, None),
        (
            "of that key bookkeeping",
            {n: max(together[n] - without[n], 0) for n in sizes},
            {n: max(js_together[n] - js_without[n], 0) for n in js_together},
            15.0,
        ),
    ):
        for n in sizes:
            add(
                name,
                n,
                ours[n],
                "us",
                peer="matrix-js-sdk 43" if n in theirs else None,
                peer_value=theirs.get(n),
                most=most,
            )
    for n, value in least(BUILD / "session", "rotation", 100, 1000, 10_000).items():
        add("new key, per device, without Olm", n, value, "us")
    out = go_bench("./core/client/olm", "FanOut", "-benchtime", "20x")
    found = re.findall(r"^BenchmarkFanOut/(again|first)/(\d+)\S*\s.*?([\d.]+) us/device", out, re.MULTILINE)
    if not found:
        sys.exit(f"no figures of Olm in: {out}")
    names = {"first": "Olm fan-out, per device, first message", "again": "Olm fan-out, per device"}
    for which, n, value in found:
        add(names[which], int(n), float(value), "us")


def calls() -> None:
    """What each call and event costs, beside the least that it could: of three runs in turn the quickest of either."""

    def c(*what: object) -> float:
        return float(figures(BUILD / "bench", *what)[0]["value"])

    ours, bare = (min(of) for of in zip(*((c(LIBRARY, "call"), c(BARE, "bare_call")) for _ in range(3)), strict=True))
    add("C call with a checked handle", 1, ours, "ns", peer="bare cgo export", peer_value=bare, most_ratio=2)
    events = figures(BUILD / "bench", LIBRARY, "events")[0]
    bare = c(BARE, "bare_callbacks")
    add(
        "events to a C callback, feed included",
        events["size"],
        events["value"],
        "events/s",
        peer="empty callbacks from Go",
        peer_value=bare,
    )

    env = {"MATRIXRTC_LIBRARY": str(LIBRARY), "PYTHONPATH": str(ROOT / "bindings/python/src")}
    for peer, command in (
        ("bare ctypes", (PYTHON, "bench/calls.py", BARE)),
        ("bare koffi", (NODE, "bench/calls.mjs", LIBRARY, BARE)),
    ):
        for runs in zip(*(figures(*command, **env) for _ in range(3)), strict=True):
            value, peer_value = (min(f[which] for f in runs) for which in ("value", "peer_value"))
            add(runs[0]["name"], runs[0]["size"], value, "ns", peer=peer, peer_value=peer_value, most_ratio=2)


def memory() -> None:
    idle = figures(BUILD / "bench", LIBRARY, "idle")[0]
    add("memory of the library and an idle client", 1, idle["value"], "MB")
    open_sessions = figures(BUILD / "bench", LIBRARY, "sessions", 10_000)[0]
    add("memory with open sessions", 10_000, open_sessions["value"], "MB")
    loads = sorted(figures(BUILD / "bench", LIBRARY, "load")[0]["value"] for _ in range(9))
    add("load, until the first client is there", 1, loads[len(loads) // 2], "ms", most=30)
    add("size of the library", 1, LIBRARY.stat().st_size / 1e6, "MB", most=12)


def first_sync() -> None:
    env = {"MATRIXRTC_LIBRARY": str(LIBRARY), "PYTHONPATH": str(ROOT / "bindings/python/src")}
    with subprocess.Popen(
        [PYTHON, "bench/first_sync.py", "serve"], cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            port = server.stdout.readline().strip()
            for f in figures(PYTHON, "bench/first_sync.py", port, **env):
                add(f["name"] + " (200 rooms)", f["size"], f["value"], "ms")
        finally:
            server.kill()


def main() -> None:
    if not LIBRARY.exists():
        sys.exit(f"{LIBRARY} is missing: run `make` first")
    if shutil.which("go") is None:
        sys.exit("go is not in PATH")
    build()
    for part in (joins, roster, keys, calls, memory, first_sync):
        part()
    (ROOT / "build" / "bench.json").write_text(json.dumps(ROWS, indent=1) + "\n")
    missed = [r for r in ROWS if r["met"] is False]
    print(f"\n{len(ROWS)} figures, {len(missed)} goals not met, written to build/bench.json")


if __name__ == "__main__":
    main()
