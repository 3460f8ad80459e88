#!/bin/sh
# Builds the shared library: capi/build.sh OUTPUT.so
# The link flags that cgo does not allow in source go through -extldflags: only mrtc_* is exported,
# the SONAME carries the ABI version, the object stays loaded. SQLite is built for size: 350 KB for a tenth of its speed.
set -eu
out=$(realpath -m "$1")
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$out")"
ldflags="-Wl,--version-script=$here/exports.map -Wl,-soname,libmatrixrtc.so.1 -Wl,-z,nodelete -Wl,--wrap=pthread_getattr_np"
cd "$here/.."
CGO_ENABLED=1 CGO_CFLAGS="${CGO_CFLAGS:--Os}" go build -tags "goolm ${MRTC_TAGS:-}" -buildmode=c-shared -trimpath -ldflags "-s -w -extldflags '$ldflags'" -o "$out" ./capi
rm -f "${out%.so}.h" # cgo's own; the public header is include/matrixrtc.h
ln -sf "$(basename "$out")" "$out.1"
