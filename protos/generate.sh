#!/usr/bin/env bash
# Generates the Python stubs of cloudclaw.v1 from protos/cloudclaw/v1/*.proto.
#
#   protos/generate.sh            lint the protos, write libs/cloudclaw/src/cloudclaw/v1/
#   protos/generate.sh --check    write nothing; exit 1 and show the difference when the committed
#                                 stubs are not what the protos give (drift)
#
# Messages come with protoc's own .pyi, services with mypy-protobuf's typed grpc stubs, so that
# servicers and clients on grpc.aio check under mypy strict. Works offline.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source=protos
package=cloudclaw/v1
target=libs/cloudclaw/src/$package
venv=$PWD/.venv/bin

case ${1:-} in
  '' | --check) mode=${1:-write} ;;
  *) echo "usage: protos/generate.sh [--check]" >&2; exit 2 ;;
esac
if [ ! -x "$venv/python" ]; then echo "protos: run 'make setup' first" >&2; exit 1; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$venv/buf" lint "$source"

# Sorted, so that the descriptors come out the same on every machine.
mapfile -t files < <(cd "$source" && LC_ALL=C ls "$package"/*.proto)
PATH=$venv:$PATH "$venv/python" -m grpc_tools.protoc -I "$source" \
  --python_out="$work" --pyi_out="$work" --grpc_python_out="$work" --mypy_grpc_out="quiet:$work" \
  "${files[@]}"

# A proto without a service leaves grpc modules that say nothing.
for file in "${files[@]}"; do
  if ! grep -q '^service ' "$source/$file"; then
    rm -f "$work/${file%.proto}"_pb2_grpc.py "$work/${file%.proto}"_pb2_grpc.pyi
  fi
done

if [ "$mode" = --check ]; then
  if ! diff -ru --exclude=__init__.py --exclude=__pycache__ --exclude=README.md "$target" "$work/$package"; then
    echo "protos: the stubs in $target are not what the protos give; run 'make protos' and commit" >&2
    exit 1
  fi
  exit 0
fi

find "$target" -maxdepth 1 -name '*_pb2*' -type f -delete
cp "$work/$package"/*_pb2* "$target/"
echo "protos: wrote $(find "$target" -maxdepth 1 -name '*_pb2*' -type f | wc -l) files to $target"
