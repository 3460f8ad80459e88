"""Runs a command while a Synapse of its own is up: `with_synapse.py [--default-rate-limits] COMMAND...`.

The command finds the server's URL in MRTC_TEST_SYNAPSE_URL.
"""

import os
import subprocess
import sys

import synapse_runner


def main(arguments: list[str]) -> int:
    limited = arguments[:1] == ["--default-rate-limits"]
    command = arguments[1:] if limited else arguments
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    with synapse_runner.running(default_rate_limits=limited) as server:
        return subprocess.run(command, env=os.environ | {"MRTC_TEST_SYNAPSE_URL": server.url}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
