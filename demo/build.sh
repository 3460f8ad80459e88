#!/bin/sh
# Builds what the demo runs beside the library: demo/build.sh DIR, where libmatrixrtc.so is already.
set -eu
build=$(realpath "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
"${CXX:-c++}" -std=c++17 -O1 -Wall -Wextra -Werror -pedantic "$root/demo/participant.cpp" -I"$root/include" \
  -L"$build" -lmatrixrtc -Wl,-rpath,'$ORIGIN' -pthread -o "$build/demo-participant"
