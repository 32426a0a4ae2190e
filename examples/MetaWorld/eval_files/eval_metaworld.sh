#!/usr/bin/env bash
# Success of TASKS (separated by blanks) over EPISODES (or EPISODES_PER_TASK) unseen starts each, from SEED on, through the
# server at HOST and PORT. Further words go to vla-rollout, for example --env.phrasings heldout. As of StarVLA's,
# METAWORLD_PYTHON is another Python that has the simulator and vla-serve, and CKPT says beside what the results go.
#   TASKS="drawer-open reach" EPISODES=10 bash examples/MetaWorld/eval_files/eval_metaworld.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
if [[ -n "${LEVELS:-}" ]]; then echo "LEVELS is not read here: name TASKS" >&2; exit 1; fi
tasks=() out="${OUT:-}" rollout=(uv run vla-rollout)
for task in ${TASKS:-drawer-open}; do tasks+=(--task "$task"); done
if [[ -n "${CKPT:-}" ]]; then out="${OUT:-$(dirname "$CKPT")/output_eval/$(basename "$CKPT")_metaworld}"; fi
if [[ -n "${METAWORLD_PYTHON:-}" ]]; then rollout=("$METAWORLD_PYTHON" -m vla_serve.rollout_cli); fi
"${rollout[@]}" --address "${HOST:-127.0.0.1}:${PORT:-${port:-10093}}" --env metaworld "${tasks[@]}" \
  --episodes "${EPISODES:-${EPISODES_PER_TASK:-10}}" --seed "${SEED:-10000}" --workers "${WORKERS:-2}" --execute_steps 8 \
  --out "${out:-runs/metaworld/rollout}" --env.start task --env.max_steps 500 \
  --env.image_size "${IMAGE_SIZE:-64}" --env.cameras "[corner4,gripperPOV]" "$@"
