"""Packs the library for those who use it: `dist.py DIR` makes and fills a folder, `make dist` build/dist.

A wheel, an npm tarball, an archive for C and C++, each with the library, the licences of what is linked into it and its
bill of materials; beside them that bill and SHA256SUMS. The same commit gives, on the same system, the same bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import gzip
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "build" / "libmatrixrtc.so"
OUT = pathlib.Path(sys.argv[1]).resolve()
MACHINE = platform.machine()
NODE_CPU = {"x86_64": "x64", "aarch64": "arm64"}

# Words by which a licence is known. One that is not in here stops the build, for a person to look at.
LICENCES = {
    "MPL-2.0": "Mozilla Public License Version 2.0",
    "Apache-2.0": "Apache License Version 2.0",
    "BSD-3-Clause": "Redistribution and use in source and binary forms",
    "MIT": "Permission is hereby granted, free of charge, to any person obtaining a copy",
}


def run(*command: object, cwd: pathlib.Path = ROOT, **env: str) -> str:
    """Runs a program; what it printed."""
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=os.environ | env, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def defined(name: str, file: pathlib.Path) -> str:
    """A string that a C header defines."""
    found = re.search(rf'^#define {name}\s+"(.+)"$', file.read_text(), re.MULTILINE)
    if not found:
        sys.exit(f"{file} does not define {name}")
    return found[1]


def sha256(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that is linked into the library."""

    name: str
    version: str
    purl: str
    licence: str
    text: str  # of the licence
    sha256: str | None = None

    def component(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            "bom-ref": self.purl,
            "type": "library",
            "name": self.name,
            "version": self.version,
            "licenses": [{"license": {"id": self.licence} if self.licence in LICENCES else {"name": self.licence}}],
            "purl": self.purl,
        }
        if self.sha256:
            made["hashes"] = [{"alg": "SHA-256", "content": self.sha256}]
        return made


def known(name: str, text: str) -> str:
    """The identifier of a licence."""
    plain = " ".join(text.split())
    for licence, words in LICENCES.items():
        if words in plain:
            return licence
    sys.exit(f"the licence of {name} is none of {', '.join(LICENCES)}")


def parts() -> list[Part]:
    """What the library says of itself: the Go modules in it, Go, and SQLite, which one of them brings."""
    built = json.loads(run("go", "version", "-m", "-json", LIBRARY))
    tags = next(s["Value"] for s in built["Settings"] if s["Key"] == "-tags")
    if tags != "goolm":
        sys.exit(f"{LIBRARY} was built with the tags {tags}: run `make -B lib`")
    folders = run("go", "list", "-m", "-f", "{{.Dir}}", *(m["Path"] for m in built["Deps"])).splitlines()
    found = []
    for module, folder in zip(built["Deps"], map(pathlib.Path, folders), strict=True):
        name, at = module["Path"], module["Version"]
        text = (folder / "LICENSE").read_text()
        digest = base64.b64decode(module["Sum"].removeprefix("h1:")).hex()
        found.append(Part(name, at, f"pkg:golang/{name}@{at}", known(name, text), text, digest))
        if name == "github.com/mattn/go-sqlite3":
            sqlite = defined("SQLITE_VERSION", folder / "sqlite3-binding.h")
            found.append(
                Part("sqlite", sqlite, f"pkg:generic/sqlite@{sqlite}", "Public domain", "In the public domain.\n")
            )
    go = built["GoVersion"].removeprefix("go")
    text = (pathlib.Path(run("go", "env", "GOROOT").strip()) / "LICENSE").read_text()
    found.append(Part("go", go, f"pkg:golang/std@{go}", known("go", text), text))
    return found


def notice(linked: list[Part]) -> str:
    """The licences that go along with the library."""
    rule = "=" * 80
    each = [f"{rule}\n{p.name} {p.version} ({p.licence})\n{rule}\n\n{p.text.strip()}\n" for p in linked]
    begin = (
        "libmatrixrtc is under the Apache License 2.0 (see LICENSE). Linked into it, unchanged, is what follows; the\n"
        "source of each module is what `go mod download MODULE@VERSION` fetches.\n"
    )
    return "\n".join([begin, *each])


def bill(version: str, time: int, linked: list[Part]) -> dict[str, Any]:
    """The bill of materials of the library, CycloneDX."""
    digest = sha256(LIBRARY)
    own = f"pkg:generic/libmatrixrtc@{version}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{own}#{digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(time, datetime.UTC).isoformat(),
            "component": {
                "bom-ref": own,
                "type": "library",
                "name": "libmatrixrtc",
                "version": version,
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": own,
            },
        },
        "components": [p.component() for p in linked],
        "dependencies": [{"ref": own, "dependsOn": [p.purl for p in linked]}, *({"ref": p.purl} for p in linked)],
    }


def wheel(stage: pathlib.Path, papers: list[pathlib.Path]) -> None:
    """auditwheel gives it the tag of the oldest glibc that the library runs on."""
    source = ROOT / "bindings/python"
    package = stage / "src/matrixrtc"
    shutil.copytree(source / "src/matrixrtc", package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (source / "pyproject.toml", source / "setup.py", source / "README.md", *papers):
        shutil.copy(file, stage)
    shutil.copy(LIBRARY, package)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", stage / "built", stage)
    (built,) = (stage / "built").glob("*.whl")
    tools = pathlib.Path(sys.executable).parent
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    run(tools / "auditwheel", "repair", "--only-plat", "-w", OUT, built, PATH=path)


def npm(stage: pathlib.Path, papers: list[pathlib.Path]) -> None:
    source = ROOT / "bindings/node"
    manifest = json.loads((source / "package.json").read_text())
    manifest |= {"cpu": [NODE_CPU[MACHINE]], "libc": ["glibc"]}
    manifest["files"] += [p.name for p in papers]
    (stage / "package.json").write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.copytree(source / "dist/src", stage / "dist/src")
    for file in (source / "README.md", LIBRARY, *papers):
        shutil.copy(file, stage)
    run("npm", "pack", "--silent", "--pack-destination", OUT, cwd=stage)


def archive(stage: pathlib.Path, papers: list[pathlib.Path], version: str, time: int) -> None:
    """For C and C++: what `make install` installs."""
    name = f"libmatrixrtc-{version}-linux-{MACHINE}"
    run("sh", ROOT / "dist/install.sh", stage)
    for paper in papers:
        shutil.copy(paper, stage)

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = time
        info.mode = 0o755 if info.mode & 0o100 else 0o644
        return info

    with (
        gzip.GzipFile(OUT / f"{name}.tar.gz", "wb", mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(stage, name, filter=plain)


def main() -> None:
    version = defined("MRTC_VERSION", ROOT / "capi/abi.h")
    time = int(os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct"))
    os.environ["SOURCE_DATE_EPOCH"] = str(time)
    OUT.mkdir(parents=True)
    linked = parts()
    sbom = OUT / "matrixrtc.cdx.json"
    sbom.write_text(json.dumps(bill(version, time, linked), indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        (work / "NOTICE").write_text(notice(linked))
        papers = [ROOT / "LICENSE", work / "NOTICE", sbom]
        for name in ("wheel", "npm", "archive"):
            (work / name).mkdir()
        wheel(work / "wheel", papers)
        npm(work / "npm", papers)
        archive(work / "archive", papers, version, time)
    sums = "".join(f"{sha256(f)}  {f.name}\n" for f in sorted(OUT.iterdir()))
    (OUT / "SHA256SUMS").write_text(sums)
    print(sums, end="")


if __name__ == "__main__":
    main()
