#!/bin/sh
# Builds the C and C++ tests and examples with AddressSanitizer and runs them: tests/cpp/run.sh [DIR]
# DIR (build) holds libmatrixrtc.so and homeserver. The last line is "N passed, N failed".
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$(realpath "${1:-$root/build}")
out=$build/tests-cpp
mkdir -p "$out"
checks="-g -O1 -Wall -Wextra -Werror -pedantic -fsanitize=address,undefined -fno-omit-frame-pointer"
link="-I$root/include -L$build -Wl,-rpath,$build -lmatrixrtc -pthread"
"${CC:-cc}" -std=c99 $checks "$root/examples/join.c" $link -o "$out/join-c"
"${CXX:-c++}" -std=c++17 $checks "$root/examples/join.cpp" $link -o "$out/join-cpp"
"${CXX:-c++}" -std=c++17 $checks "$here/wrapper.cpp" $link -o "$out/wrapper"
"${CXX:-c++}" -std=c++17 $checks "$root/examples/frames.cpp" "-I$root/include" -lcrypto -o "$out/frames"
for sanitizer in address,undefined thread; do
  "${CXX:-c++}" -std=c++17 -g -O1 -Wall -Wextra -Werror -pedantic -fsanitize=$sanitizer \
    "$here/frame_keys.cpp" "-I$root/include" -pthread -o "$out/frame_keys-${sanitizer%,*}"
done
exec python3 "$here/run.py" "$build"
