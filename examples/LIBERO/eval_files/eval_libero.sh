#!/usr/bin/env bash
# Success over the benchmark's initial states of a SUITE (libero_spatial, libero_object, libero_goal, libero_10), or of
# some TASKS; TASK_SUITE_NAME and NUM_TRIALS_PER_TASK, as StarVLA calls them, will do for SUITE and EPISODES. VARIANT:
# language, swap, object or task of LIBERO-PRO. RENDERING: fast for a policy trained on what record_libero.sh made,
# official for one of the published demonstrations. Further words go to vla-rollout.
#   SUITE=libero_object EPISODES=50 bash examples/LIBERO/eval_files/eval_libero.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
suite="${SUITE:-${TASK_SUITE_NAME:-libero_spatial}}"
tasks=()
for task in ${TASKS:-$(seq -f "${suite}_%g" 0 9)}; do tasks+=(--task "$task"); done
program="${LIBERO_ENV:-runs/libero/env}/bin/vla-rollout"
if [[ ! -x "$program" ]]; then echo "no $program: bash examples/LIBERO/install_libero.sh makes it" >&2; exit 1; fi
"$program" --address "127.0.0.1:${PORT:-${port:-10093}}" --env libero "${tasks[@]}" \
  --episodes "${EPISODES:-${NUM_TRIALS_PER_TASK:-50}}" --seed 0 --workers "${WORKERS:-2}" --execute_steps "${EXECUTE_STEPS:-8}" \
  --out "${OUT:-runs/libero/rollout_${suite}_${VARIANT:-none}}" --env.variant "${VARIANT:-none}" \
  --env.rendering "${RENDERING:-fast}" --env.image_size "${IMAGE_SIZE:-128}" "$@"
