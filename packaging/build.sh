#!/bin/sh
# Makes the packages of a program that was built: build.sh NFPM PROGRAM OUT
set -eu
nfpm=$1 out=$3
PROGRAM=$(readlink -f "$2")
VERSION=$("$PROGRAM" --version | cut -d' ' -f2)
case $(uname -m) in
x86_64) ARCH=amd64 ;;
aarch64) ARCH=arm64 ;;
*) echo "no packages are made for $(uname -m)" >&2; exit 1 ;;
esac
# The newest C library that the program asks for.
GLIBC=$(objdump -T "$PROGRAM" | sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\).*/\1/p' | sort -Vu | tail -n 1)
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
"$PROGRAM" install-service --init systemd --program /usr/bin/pinhole --root "$STAGE" > /dev/null
export PROGRAM VERSION ARCH GLIBC STAGE
mkdir -p "$out"
for packager in deb rpm; do
    "$nfpm" package --config packaging/nfpm.yaml --packager "$packager" --target "$out"
done
