#!/usr/bin/env bash
# Trains on all folders gr1_unified.*_1000 in DATA. Further words are overrides (uv run vla-train --help says how).
# Several GPUs: LAUNCH="accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 8 -m vla_train"
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
sets=""
for folder in "${DATA:-data}"/gr1_unified.*_1000; do
  if [[ ! -d "$folder" ]]; then continue; fi # the pattern itself, where nothing fits it
  sets+="${sets:+,}{name: lerobot, path: $folder, robot: configs/robots/gr1_arms_waist.yaml}"
done
if [[ -z "$sets" ]]; then echo "DATA: no folder ${DATA:-data}/gr1_unified.*_1000; the README of this example says where to get them" >&2; exit 1; fi
# shellcheck disable=SC2086
uv run ${LAUNCH:-vla-train} --config examples/Robocasa_tabletop/train_files/train.yaml "datasets.train=[$sets]" trainer.resume=auto "$@"
