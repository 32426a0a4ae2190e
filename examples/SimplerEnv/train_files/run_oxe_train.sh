#!/usr/bin/env bash
# Trains on DATA/bridge_orig_1.0.0_lerobot and DATA/fractal20220817_data_0.1.0_lerobot. Further words are overrides (uv run vla-train --help says how):
#   bash .../run_oxe_train.sh framework.name=QwenOFT trainer.max_steps=20000
# Several GPUs: LAUNCH="accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 8 -m vla_train"
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
data="${DATA:-data}"
# shellcheck disable=SC2086
uv run ${LAUNCH:-vla-train} --config examples/SimplerEnv/train_files/train.yaml \
  "datasets.train.0.path=$data/bridge_orig_1.0.0_lerobot" \
  "datasets.train.1.path=$data/fractal20220817_data_0.1.0_lerobot" trainer.resume=auto "$@"
