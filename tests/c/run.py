"""Runs what run.sh has built, and looks at the library itself: its exports, its name, its panics under faulthandler."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from checks import Checks  # noqa: E402

PATIENCE = 300  # seconds; what hangs is killed and counts as failed

# Functions of the header that answer no status: nothing can go wrong in them.
WITHOUT_STATUS = {"mrtc_version", "mrtc_abi_version", "mrtc_status_name", "mrtc_free"}


def run(*command: object) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as e:
        return -1, f"{e.output}\nnot finished after {PATIENCE} s"
    return done.returncode, done.stdout


def declared() -> set[str]:
    """The functions of the header."""
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "include/matrixrtc.h").read_text(), flags=re.DOTALL)
    return set(re.findall(r"^(?:mrtc_status|const char \*|int|void) ?(mrtc_\w+)\(", text, re.MULTILINE))


def tried() -> set[str]:
    """The functions that every test of tests/c/every.h is made with."""
    return set(re.findall(r"^    EVERY\((\w+),", (HERE / "every.h").read_text(), re.MULTILINE))


def passing() -> set[str]:
    """The events, and the names of the fields of all that passes, as the schemas have them."""
    names = set()

    def collect(schema: object) -> None:
        if isinstance(schema, dict):
            names.update(schema.get("properties") or ())
        for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            collect(part)

    for file in (ROOT / "schema").glob("*.json"):
        if file.name.startswith("event."):
            names.add(file.name.split(".")[1])
        if file.name != "result.session_debug_snapshot.json":  # what a bug report holds is for us to read
            collect(json.loads(file.read_text()))
    return names


def exported(library: pathlib.Path) -> set[str]:
    _, text = run("nm", "-D", "--defined-only", library)
    return {line.split()[-1].split("@")[0] for line in text.splitlines()}


def surface(checks: Checks, library: pathlib.Path) -> None:
    functions = declared()
    checks.check(len(functions) > 40, f"the header is read: {functions}")
    checks.check(
        functions - WITHOUT_STATUS == tried(), f"tested or declared, not both: {functions - WITHOUT_STATUS ^ tried()}"
    )
    manual = set(re.findall(r"\w+", (ROOT / "include/matrixrtc.h").read_text()))
    checks.check(passing() <= manual, f"the header, which is the manual, lacks {passing() - manual}")
    checks.check(functions == exported(library), f"exported or declared, not both: {functions ^ exported(library)}")
    _, dynamic = run("readelf", "-dW", library)
    checks.check("soname: [libmatrixrtc.so.1]" in dynamic, f"the SONAME\n{dynamic}")
    checks.check(bool(re.search(r"FLAGS_1.*NODELETE", dynamic)), f"it cannot be unloaded\n{dynamic}")
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    checks.check(
        all(re.match(r"lib(c|pthread|dl|resolv|m)\.so|ld-linux", n) for n in needed),
        f"it needs only glibc, not {needed}",
    )


# Python's faulthandler has handlers of its own for the signals of crashes, installed before or after the library's.
# A panic that the library raises itself is stopped either way; a nil dereference only where Go's handler is the last.
FAULTS = """
import ctypes, faulthandler, sys
before, places = sys.argv[2] == "before", sys.argv[3:]
if before:
    faulthandler.enable()
library = ctypes.CDLL(sys.argv[1])
if not before:
    faulthandler.enable()
new, take = library.mrtc_client_new, library.mrtc_client_next_event
new.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p]
take.argtypes = [ctypes.c_uint64, ctypes.c_int64, ctypes.POINTER(ctypes.c_char_p)]
library.mrtc_test_panic.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_void_p]
for place in places:
    client, event = ctypes.c_uint64(), ctypes.c_char_p()
    assert new(b'{"mode":"host_driven","user_id":"@a:b","device_id":"D"}', client, None) == 0
    assert take(client, 0, event) == 1
    library.mrtc_test_panic(client, place.encode(), None)
    assert take(client, 60000, event) == 0 and b'"client_failed"' in event.value, (place, event.value)
print("went on")
"""


def faulthandler(checks: Checks, library: pathlib.Path) -> None:
    for when, places in {
        "before": ("export", "nil", "lock", "goroutine", "timer"),
        "after": ("export", "lock", "goroutine", "timer"),
    }.items():
        code, text = run(sys.executable, "-c", FAULTS, library, when, *places)
        checks.check(code == 0 and text == "went on\n", f"faulthandler enabled {when} the load: {code}\n{text}")


def main() -> int:
    build = pathlib.Path(sys.argv[1])
    checks = Checks()
    library, out = build / "libmatrixrtc.so", build / "tests-c"
    surface(checks, library)
    for name in "misuse", "listeners", "queue", "threads", "fork", "panics/panics":
        checks.program(name, *run(out / name))
    checks.program("load", *run(out / "load", library))
    faulthandler(checks, out / "panics" / "libmatrixrtc.so")
    print(checks)
    return checks.failed != 0


if __name__ == "__main__":
    sys.exit(main())
