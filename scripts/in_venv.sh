#!/bin/sh
# Run a command of this repository's environment: scripts/in_venv.sh black --version
exec "${COOKBOOK_INSTALL:-.}/.venv/bin/$@"
