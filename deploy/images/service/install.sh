#!/bin/sh
# Installs what lies in `packages` into the virtual environment: locked requirements, and wheels of this repository. The
# environment has no pip of its own; the base's serves it.
set -eu

cd /opt/cloudclaw/packages
set -- python3 -m pip --python /opt/cloudclaw/venv/bin/python install --quiet --no-cache-dir --disable-pip-version-check \
  --no-deps
if grep -q == requirements.txt; then "$@" --find-links . --require-hashes --requirement requirements.txt; fi
if [ -d own ]; then "$@" own/*.whl; fi
rm -rf /opt/cloudclaw/packages
