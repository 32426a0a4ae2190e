#!/usr/bin/env bash
# Trains on the data set DATA. Further words are overrides (uv run vla-train --help says how):
#   bash .../run_libero_train.sh trainer.max_steps=20000
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
uv run vla-train --config examples/LIBERO/train_files/train.yaml \
  "datasets.train.0.path=${DATA:-runs/libero/data}" trainer.resume=auto "$@"
