#!/usr/bin/env bash
# Demonstrations of the scripted expert: TASKS (separated by blanks), EPISODES a task, into DATA. Never from the
# benchmark's initial states. Further words go to vla-data record.
#   TASKS="libero_spatial_0 libero_object_3" EPISODES=50 bash examples/LIBERO/train_files/record_libero.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
tasks=()
for task in ${TASKS:-libero_spatial_0}; do tasks+=(--task "$task"); done
program="${LIBERO_ENV:-runs/libero/env}/bin/vla-data"
if [[ ! -x "$program" ]]; then echo "no $program: bash examples/LIBERO/install_libero.sh makes it" >&2; exit 1; fi
"$program" record --env libero "${tasks[@]}" --episodes "${EPISODES:-50}" \
  --noise "${NOISE:-0.1}" --workers "${WORKERS:-2}" --format arrays --out "${DATA:-runs/libero/data}" \
  --env.start random --env.rendering fast --env.image_size "${IMAGE_SIZE:-128}" "$@"
