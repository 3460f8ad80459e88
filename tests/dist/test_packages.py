"""Each package of build/dist, installed where nothing else of ours is, joins a call from there.

The homeserver is the embedded one. Which library a program has loaded is read from its memory map.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIST = ROOT / "build" / "dist"
sys.path.insert(0, str(ROOT / "demo"))

from demo import Homeserver, embedded_homeserver  # noqa: E402

# A shell that runs us in the background has Ctrl-C ignored, and our children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SBOM = "matrixrtc.cdx.json"
LIMIT = 12_000_000  # bytes, of the library
# What could lead a program to a library other than that of its package.
LEADS = ("MATRIXRTC_LIBRARY", "LD_LIBRARY_PATH", "PYTHONPATH", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH", "NODE_PATH")
CLEAN = {name: value for name, value in os.environ.items() if name not in LEADS}
CLEAN["PATH"] = f"{ROOT / 'build/dist-venv/bin'}{os.pathsep}{os.environ['PATH']}"  # has cmake and pkg-config


def only(pattern: str) -> pathlib.Path:
    (found,) = DIST.glob(pattern)
    return found


def run(*command: object, cwd: pathlib.Path, **env: str) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=CLEAN | env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def version() -> str:
    found = re.search(r'^#define MRTC_VERSION "(.+)"$', (ROOT / "capi/abi.h").read_text(), re.MULTILINE)
    assert found
    return found[1]


def contents() -> dict[str, dict[str, bytes]]:
    """The files of each package."""
    with zipfile.ZipFile(only("*.whl")) as wheel:
        found = {"wheel": {name: wheel.read(name) for name in wheel.namelist()}}
    for kind, pattern in (("npm", "*.tgz"), ("archive", "*.tar.gz")):
        found[kind] = {}
        with tarfile.open(only(pattern)) as tar:
            for member in tar:
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file
                    found[kind][member.name] = file.read()
    return found


def named(files: dict[str, bytes], name: str) -> bytes:
    (found,) = (content for path, content in files.items() if pathlib.PurePath(path).name.startswith(name))
    return found


def test_versions_agree() -> None:
    pyproject = (ROOT / "bindings/python/pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)[1] == version()  # type: ignore[index]
    for name in ("package.json", "package-lock.json"):
        assert json.loads((ROOT / "bindings/node" / name).read_text())["version"] == version(), name
    assert all(version() in only(p).name for p in ("*.whl", "*.tgz", "*.tar.gz"))


def test_sums() -> None:
    listed = dict(reversed(line.split("  ")) for line in (DIST / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {f.name for f in DIST.iterdir()} - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((DIST / name).read_bytes()).hexdigest() == digest, name


def test_the_same_commit_gives_the_same_bytes(tmp_path: pathlib.Path) -> None:
    run(ROOT / "build/dist-venv/bin/python", ROOT / "dist/dist.py", tmp_path / "again", cwd=tmp_path)
    assert (tmp_path / "again/SHA256SUMS").read_text() == (DIST / "SHA256SUMS").read_text()


def test_each_has_the_library_and_its_papers() -> None:
    library = (ROOT / "build/libmatrixrtc.so").read_bytes()
    assert len(library) <= LIMIT
    for kind, files in contents().items():
        assert named(files, "libmatrixrtc.so") == library, kind
        assert named(files, SBOM) == (DIST / SBOM).read_bytes(), kind
        assert b"Apache License" in named(files, "LICENSE"), kind
        assert b"Mozilla Public License" in named(files, "NOTICE"), kind


def test_the_library_is_stripped_and_as_old_as_the_tag_says() -> None:
    library = ROOT / "build/libmatrixrtc.so"
    sections = run("readelf", "-SW", library, cwd=ROOT)
    assert ".dynsym" in sections
    assert not re.search(r"\.(symtab|debug_)", sections)
    needed = re.findall(r"GLIBC_(\d+)\.(\d+)", run("readelf", "-VW", library, cwd=ROOT))
    newest = max((int(major), int(minor)) for major, minor in needed)
    tag = f"manylinux_{newest[0]}_{newest[1]}_{platform.machine()}"
    wheel = only("*.whl")
    assert wheel.name.endswith(f"-py3-none-{tag}.whl")
    told = run(ROOT / "build/dist-venv/bin/auditwheel", "show", wheel, cwd=ROOT)
    assert f'consistent with the following platform tag: "{tag}"' in " ".join(told.split())


def test_bill_of_materials() -> None:
    bill = json.loads((DIST / SBOM).read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    library = ROOT / "build/libmatrixrtc.so"
    own = bill["metadata"]["component"]
    assert own["version"] == version()
    assert own["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(library.read_bytes()).hexdigest()}]
    parts = {c["name"]: c for c in bill["components"]}
    lines = [line.split("\t")[1:] for line in run("go", "version", "-m", library, cwd=ROOT).splitlines()]
    modules = [line for line in lines if line and line[0] == "dep"]
    assert len(parts) == len(modules) + 2  # Go and SQLite
    for _, name, at, digest in modules:
        assert parts[name]["version"] == at
        assert parts[name]["purl"] == f"pkg:golang/{name}@{at}"
        assert "h1:" + base64.b64encode(bytes.fromhex(parts[name]["hashes"][0]["content"])).decode() == digest
    assert all(c["licenses"] for c in parts.values())
    references = {own["bom-ref"], *(c["bom-ref"] for c in parts.values())}
    assert {d["ref"] for d in bill["dependencies"]} == references


def test_the_wheel_has_the_extra() -> None:
    metadata = named(contents()["wheel"], "METADATA").decode()
    assert "Provides-Extra: livekit\n" in metadata
    assert re.search(r'^Requires-Dist: livekit\b.*; extra == "livekit"$', metadata, re.MULTILINE)


@pytest.fixture(scope="module")
def server() -> Iterator[Homeserver]:
    with embedded_homeserver(ROOT / "build" / "homeserver") as url:
        yield Homeserver(url)


class Caller:
    """An account in a room of its own, and the example program that joins the call there."""

    def __init__(self, server: Homeserver, *command: object, cwd: pathlib.Path, password: bool = False) -> None:
        self.server, self.cwd = server, cwd
        secret = secrets.token_hex(8)
        content = {"username": f"u{secret}", "password": secret, "auth": {"type": "m.login.dummy"}}
        self.user: dict[str, str] = server.request("POST", "/register", content)
        self.room = server.room(self.user, [])
        login = [self.user["user_id"], secret] if password else [self.user["access_token"]]
        self.command = [str(c) for c in (*command, server.url, *login, self.room)]

    def joins_and_leaves(self, installed: pathlib.Path, ends_by: signal.Signals | None = None) -> None:
        """The program sees itself in the call, by the library in `installed`, and is out of it at its end, which a
        signal or the end of its input brings."""
        with subprocess.Popen(
            self.command,
            cwd=self.cwd,
            env=CLEAN | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            hung = threading.Timer(180, process.kill)
            hung.start()
            try:
                assert process.stdout
                said: list[str] = []
                for line in process.stdout:
                    said.append(line)
                    if self.user["user_id"] in line and ("joined" in line or line.startswith("+ ")):
                        break
                assert self.in_call() == [self.user["user_id"]], "".join(said)
                maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text()
                loaded = set(re.findall(r"/\S*libmatrixrtc\S*", maps))
                assert loaded and all(pathlib.Path(p).is_relative_to(installed) for p in loaded), loaded
                if ends_by:
                    process.send_signal(ends_by)
                said.append(process.communicate()[0])
            finally:
                hung.cancel()
                process.kill()
        assert process.returncode == (-ends_by if ends_by else 0), "".join(said)
        assert self.in_call() == [], "".join(said)

    def in_call(self) -> list[str]:
        return self.server.call_members(self.room, self.user)


def test_wheel(server: Homeserver, tmp_path: pathlib.Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    run(venv / "bin/pip", "install", "-q", "--no-index", only("*.whl"), cwd=tmp_path)
    program = shutil.copy(ROOT / "examples/join.py", tmp_path)
    Caller(server, venv / "bin/python", program, cwd=tmp_path, password=True).joins_and_leaves(venv, signal.SIGINT)


def test_npm(server: Homeserver, tmp_path: pathlib.Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    run("npm", "install", "--no-audit", "--no-fund", "--prefer-offline", only("*.tgz"), cwd=tmp_path)
    source = (ROOT / "examples/join.mjs").read_text()
    elsewhere = re.sub(r"from '.*/dist/src/index.js'", "from 'matrixrtc'", source)
    assert elsewhere != source
    program = tmp_path / "join.mjs"
    program.write_text(elsewhere)
    Caller(server, "node", program, cwd=tmp_path).joins_and_leaves(tmp_path / "node_modules")
    package = tmp_path / "node_modules/matrixrtc"
    for name, files in json.loads((package / "package.json").read_text())["exports"].items():
        assert all((package / file).is_file() for file in files.values()), name


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where somebody has unpacked the archive."""
    where = tmp_path_factory.mktemp("prefix")
    with tarfile.open(only("*.tar.gz")) as tar:
        tar.extractall(where, filter="data")
    (unpacked,) = where.iterdir()
    return unpacked


def test_cmake(server: Homeserver, prefix: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.16)
project(caller CXX)
set(CMAKE_CXX_STANDARD 17)
find_package(matrixrtc {version()} REQUIRED)
add_executable(caller {ROOT}/examples/join.cpp)
target_link_libraries(caller matrixrtc::matrixrtc)
"""
    )
    run("cmake", "-B", "out", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=tmp_path)
    run("cmake", "--build", "out", cwd=tmp_path)
    Caller(server, tmp_path / "out/caller", cwd=tmp_path).joins_and_leaves(prefix)


def test_cmake_refuses_another_major_version(prefix: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wanted = int(version().split(".")[0]) + 1
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.16)
project(caller CXX)
find_package(matrixrtc {wanted} QUIET)
if(matrixrtc_FOUND)
  message(FATAL_ERROR "took {version()} for {wanted}")
endif()
message(STATUS "considered ${{matrixrtc_CONSIDERED_VERSIONS}}")
"""
    )
    told = run("cmake", "-B", "out", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=tmp_path)
    assert f"considered {version()}" in told


def test_make_install(server: Homeserver, tmp_path: pathlib.Path) -> None:
    """As for a package of a distribution; then pkg-config alone says how to compile and link."""
    run("make", "-s", "install", "PREFIX=/usr", f"DESTDIR={tmp_path}", cwd=ROOT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["usr"]
    found = {"PKG_CONFIG_PATH": str(tmp_path / "usr/lib/pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "matrixrtc", cwd=tmp_path, **found).split()
    run("cc", "-std=c99", ROOT / "examples/join.c", *flags, "-o", "caller", cwd=tmp_path)
    caller = Caller(server, tmp_path / "caller", cwd=tmp_path)
    told = run(*caller.command, cwd=tmp_path, LD_LIBRARY_PATH=str(tmp_path / "usr/lib"))
    assert caller.user["user_id"] in told and '{"sent":true}' in told


def test_pkg_config(server: Homeserver, prefix: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = str(prefix / "lib/pkgconfig")
    assert run("pkg-config", "--modversion", "matrixrtc", cwd=tmp_path, PKG_CONFIG_PATH=path).strip() == version()
    flags = run("pkg-config", "--cflags", "--libs", "matrixrtc", cwd=tmp_path, PKG_CONFIG_PATH=path).split()
    rpath = f"-Wl,-rpath,{prefix}/lib"
    for compiler, standard, source in (("cc", "-std=c99", "join.c"), ("c++", "-std=c++17", "join.cpp")):
        run(compiler, standard, ROOT / "examples" / source, *flags, rpath, "-o", source + ".out", cwd=tmp_path)
        assert str(prefix / "lib/libmatrixrtc.so.1") in run("ldd", source + ".out", cwd=tmp_path)
    Caller(server, tmp_path / "join.cpp.out", cwd=tmp_path).joins_and_leaves(prefix)
    caller = Caller(server, tmp_path / "join.c.out", cwd=tmp_path)
    told = run(*caller.command, cwd=tmp_path)  # leaves by itself
    assert caller.user["user_id"] in told and '{"sent":true}' in told
    assert caller.in_call() == []
