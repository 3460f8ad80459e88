"""What the tests of C and of C++ have found: counted, and each failure told at once."""

from __future__ import annotations

import re


class Checks:
    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed"

    def check(self, ok: bool, what: str) -> None:
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {what}", flush=True)

    def program(self, name: str, code: int, text: str) -> None:
        """Counts what a program has found, which ends with "N passed, N failed"."""
        found = re.findall(r"^(\d+) passed, (\d+) failed$", text, re.MULTILINE)
        if found:
            self.passed += int(found[-1][0])
            self.failed += int(found[-1][1])
            print(f"{name}: {found[-1][0]} passed, {found[-1][1]} failed", flush=True)
        self.check(len(found) == 1 and code == 0, f"{name} ended with {code}\n{text}")
