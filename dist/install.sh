#!/bin/sh
# Installs the library, its headers and what pkg-config and CMake want: dist/install.sh PREFIX
# What is installed may be moved: nothing in it names the prefix.
set -eu
prefix=$1
root=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n 's/^#define MRTC_VERSION "\(.*\)"$/\1/p' "$root/capi/abi.h")
cmake=$prefix/lib/cmake/matrixrtc
install -d "$prefix/include" "$prefix/lib/pkgconfig" "$cmake"
cp -R "$root/include/." "$prefix/include"
install -m 755 "$root/build/libmatrixrtc.so" "$prefix/lib/libmatrixrtc.so.1"
ln -sf libmatrixrtc.so.1 "$prefix/lib/libmatrixrtc.so"
sed "s/@VERSION@/$version/" "$root/dist/matrixrtc.pc.in" >"$prefix/lib/pkgconfig/matrixrtc.pc"
sed "s/@VERSION@/$version/" "$root/dist/matrixrtc-config-version.cmake.in" >"$cmake/matrixrtc-config-version.cmake"
install -m 644 "$root/dist/matrixrtc-config.cmake" "$cmake"
