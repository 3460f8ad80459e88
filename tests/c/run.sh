#!/bin/sh
# Builds the C tests with AddressSanitizer and runs them: tests/c/run.sh [DIR]
# DIR (build) holds libmatrixrtc.so. The last line is "N passed, N failed".
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$(realpath "${1:-$root/build}")
out=$build/tests-c
mkdir -p "$out/panics"
MRTC_TAGS=mrtc_panic sh "$root/capi/build.sh" "$out/panics/libmatrixrtc.so"
flags="-std=c11 -D_GNU_SOURCE -g -O1 -Wall -Wextra -Werror -I$root/include"
asan="-fsanitize=address,undefined -fno-omit-frame-pointer"
for name in misuse listeners queue threads fork; do
  "${CC:-cc}" $flags $asan "$here/$name.c" -L"$build" -Wl,-rpath,"$build" -lmatrixrtc -pthread -o "$out/$name"
done
"${CC:-cc}" $flags $asan "$here/panics.c" -L"$out/panics" -Wl,-rpath,"$out/panics" -lmatrixrtc -pthread -o "$out/panics/panics"
"${CC:-cc}" $flags "$here/load.c" -ldl -o "$out/load"
exec python3 "$here/run.py" "$build"
