"""The library as a guest in a process: loading, forks, Ctrl-C, collection, exit, logging."""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from subprocess import CompletedProcess

from conftest import SOURCE

import matrixrtc
from matrixrtc import Client

Run = Callable[..., CompletedProcess[str]]


def test_import_loads_nothing_and_a_child_may_use_it(run: Run) -> None:
    done = run(
        "import os, matrixrtc\n"
        "assert matrixrtc.library._loaded is None\n"
        "pid = os.fork()\n"
        "with matrixrtc.Client.host_driven('@a:x', 'D') as c: os.write(1, (c.info().user_id + '\\n').encode())\n"
        "if pid: assert os.waitpid(pid, 0)[1] == 0\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "@a:x\n@a:x\n", "")


def test_a_forked_child_is_refused(run: Run) -> None:
    done = run(
        "import os, matrixrtc\n"
        "c = matrixrtc.Client.host_driven('@a:x', 'D')\n"
        "s = c.session('!r:x')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    for f in (c.info, c.next_event, s.info, s.join, s.close, c.close, lambda: matrixrtc.enable_logging(),\n"
        "              lambda: matrixrtc.Client.host_driven('@a:x', 'D')):\n"
        "        try: f()\n"
        "        except matrixrtc.ForkedError as e: assert e.status == 'MRTC_ERR_FORKED' and e.message\n"
        "        else: raise AssertionError(f)\n"
        "else:\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "    print(c.info().user_id)\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "@a:x\n", "")


def test_ctrl_c_ends_a_wait() -> None:
    script = (
        "import matrixrtc\n"
        "c = matrixrtc.Client.host_driven('@a:x', 'D')\n"
        "try:\n"
        "    print('waiting', flush=True)\n"
        "    c.next_event()\n"
        "except KeyboardInterrupt: print('interrupted', c.info().user_id)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted @a:x\n"
        assert process.wait(60) == 0


def test_a_client_that_is_forgotten_is_freed() -> None:
    client = Client.host_driven("@a:x", "D")
    session = client.session("!r:x")
    handle, gone = client._handle, weakref.ref(client)
    session.on("left", session.close)
    del client, session
    gc.collect()
    assert gone() is None
    status, _ = matrixrtc.library.raw_call("mrtc_client_info", handle)
    assert status == -2


def test_collection_at_any_moment(run: Run) -> None:
    done = run(
        "import gc, threading, matrixrtc\n"
        "gc.set_threshold(1)\n"
        "def work():\n"
        "    for i in range(60):\n"
        "        c = matrixrtc.Client.host_driven('@a:x', 'D')\n"
        "        c.session('!r:x').join()\n"
        "        while c.next_event(0): pass\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_interpreter_may_exit_while_threads_wait_and_logs_come(run: Run) -> None:
    done = run(
        "import threading, matrixrtc, logging\n"
        "logging.raiseExceptions = True\n"
        "matrixrtc.enable_logging(level=logging.DEBUG)\n"
        "c = matrixrtc.Client('http://127.0.0.1:9', access_token='t'); c.start()\n"
        "c.session('!r:x').join()\n"
        "threading.Thread(target=c.next_event, daemon=True).start()\n"
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Fatal" not in done.stderr


def test_a_log_line_says_what_is_wrong() -> None:
    lines: queue.Queue[str] = queue.Queue()
    logger = logging.Logger("test")
    handler = logging.Handler()
    handler.emit = lambda record: lines.put(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    matrixrtc.enable_logging(logger)
    try:
        with matrixrtc.Client("http://127.0.0.1:9", access_token="t"):
            while not (line := lines.get(timeout=60)).startswith("sync failed: error=dial"):
                pass
    finally:
        matrixrtc.disable_logging()
    assert line.endswith("connect: connection refused, status=MRTC_ERR_NETWORK")


def test_exit_inside_a_running_loop(run: Run) -> None:
    done = run(
        "import asyncio, sys, matrixrtc\n"
        "async def main():\n"
        "    c = matrixrtc.Client.host_driven('@a:x', 'D')\n"
        "    c.session('!r:x').join()\n"
        "    async for e in c.events(): sys.exit(3)\n"
        "asyncio.run(main())\n"
    )
    assert (done.returncode, done.stderr) == (3, "")


def test_no_descriptor_is_left_open(run: Run) -> None:
    done = run(
        "import asyncio, os, matrixrtc\n"
        "async def once():\n"
        "    async with matrixrtc.Client.host_driven('@a:x', 'D') as c: c.events()\n"
        "asyncio.run(once())\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(20): asyncio.run(once())\n"
        "print(len(os.listdir('/proc/self/fd')) - before)\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_wait_ends_when_the_time_is_over() -> None:
    with Client.host_driven("@a:x", "D") as client:
        began = time.monotonic()
        assert client.next_event(0.25) is None
        assert 0.2 < time.monotonic() - began < 30


def test_log_lines_reach_logging_only_when_asked_for(run: Run) -> None:
    script = (
        "import sys, logging, threading, matrixrtc\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format='%(name)s %(message)s %(fields)s')\n"
        "logged = threading.Event()\n"
        "logging.getLogger().handlers[0].addFilter(lambda r: logged.set() or True)\n"
        "if sys.argv[1] == 'on': matrixrtc.enable_logging(level=logging.DEBUG)\n"
        "c = matrixrtc.Client('http://127.0.0.1:9', access_token='sesame'); c.start()\n"
        "while c.next_event(60).data.get('state') != 'reconnecting': pass\n"
        "if sys.argv[1] == 'on': assert logged.wait(60)\n"
        "matrixrtc.disable_logging()\n"
    )
    quiet, heard = run(script, "off"), run(script, "on")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert (heard.returncode, heard.stderr) == (0, "")
    assert heard.stdout.startswith("matrixrtc ")
    assert "sesame" not in heard.stdout
