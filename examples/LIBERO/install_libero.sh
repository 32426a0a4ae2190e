#!/usr/bin/env bash
# The simulator (2 GB, no torch) with this project's client, in an environment of its own: LIBERO_ENV.
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
env="${LIBERO_ENV:-runs/libero/env}"
uv venv --quiet --no-project --allow-existing "$env"
uv pip install --quiet --python "$env/bin/python" \
  "vla-core[libero] @ ./packages/vla-core" "vla-serve[libero,video] @ ./packages/vla-serve" \
  "vla-data @ ./packages/vla-data"
echo "$env has the simulator and the client"
