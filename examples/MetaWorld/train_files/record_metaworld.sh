#!/usr/bin/env bash
# Demonstrations of the scripted experts: TASKS (separated by blanks), EPISODES a task, into DATA. Further words go to
# vla-data record.
#   TASKS="drawer-open reach" EPISODES=50 bash examples/MetaWorld/train_files/record_metaworld.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
tasks=()
for task in ${TASKS:-drawer-open}; do tasks+=(--task "$task"); done
uv run vla-data record --env metaworld "${tasks[@]}" --episodes "${EPISODES:-50}" --noise "${NOISE:-0.2}" \
  --workers "${WORKERS:-2}" --format "${FORMAT:-arrays}" --out "${DATA:-runs/metaworld/data}" \
  --env.start task --env.max_steps 500 --env.image_size "${IMAGE_SIZE:-64}" --env.cameras "[corner4,gripperPOV]" "$@"
