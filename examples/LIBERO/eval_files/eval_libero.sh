#!/usr/bin/env bash
# Success over the benchmark's initial states of a SUITE (libero_spatial, libero_object, libero_goal, libero_10), or of
# some TASKS, through the server at HOST and PORT. VARIANT: language, swap, object or task of LIBERO-PRO. RENDERING: fast for
# a policy trained on what record_libero.sh made, official for one of the published demonstrations. Further words go to
# vla-rollout. StarVLA's names do as well: TASK_SUITE_NAME, NUM_TRIALS_PER_TASK, LIBERO_PYTHON (default: that of LIBERO_ENV)
# and CKPT, which says beside what the results go.
#   SUITE=libero_object EPISODES=50 bash examples/LIBERO/eval_files/eval_libero.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
suite="${SUITE:-${TASK_SUITE_NAME:-libero_spatial}}"
tasks=()
for task in ${TASKS:-$(seq -f "${suite}_%g" 0 9)}; do tasks+=(--task "$task"); done
variant="${VARIANT:-none}" out="${OUT:-}"
if [[ -n "${CKPT:-}" ]]; then out="${OUT:-$(dirname "$CKPT")/output_eval/$(basename "$CKPT")_${suite}_$variant}"; fi
sim="${LIBERO_PYTHON:-${LIBERO_ENV:-runs/libero/env}/bin/python}"
"$sim" -c "import vla_serve" 2>/dev/null || {
  echo "$sim has no vla-serve: bash examples/LIBERO/install_libero.sh makes an environment that has it" >&2; exit 1
}
"$sim" -m vla_serve.rollout_cli --address "${HOST:-127.0.0.1}:${PORT:-${port:-10093}}" --env libero "${tasks[@]}" \
  --episodes "${EPISODES:-${NUM_TRIALS_PER_TASK:-50}}" --seed 0 --workers "${WORKERS:-2}" --execute_steps "${EXECUTE_STEPS:-8}" \
  --out "${out:-runs/libero/rollout_${suite}_$variant}" --env.variant "$variant" \
  --env.rendering "${RENDERING:-fast}" --env.image_size "${IMAGE_SIZE:-128}" "$@"
