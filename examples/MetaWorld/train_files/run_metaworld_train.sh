#!/usr/bin/env bash
# Trains on the data set DATA. Further words are overrides (uv run vla-train --help says how):
#   bash .../run_metaworld_train.sh trainer.max_steps=2000
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
uv run vla-train --config examples/MetaWorld/train_files/train.yaml \
  "datasets.train.0.path=${DATA:-runs/metaworld/data}" trainer.resume=auto "$@"
