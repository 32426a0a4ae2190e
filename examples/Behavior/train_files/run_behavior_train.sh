#!/usr/bin/env bash
# Trains on the data set DATA. Further words are overrides (uv run vla-train --help says how).
# Several GPUs: LAUNCH="accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 8 -m vla_train"
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck disable=SC2086
uv run ${LAUNCH:-vla-train} --config examples/Behavior/train_files/train.yaml "datasets.train.0.path=${DATA:-data/2025-challenge-demos}" trainer.resume=auto "$@"
