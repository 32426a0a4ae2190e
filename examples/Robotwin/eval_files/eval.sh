#!/usr/bin/env bash
# One task, in a checkout of RoboTwin (ROBOTWIN_PATH) with its environment (ROBOTWIN_PYTHON); words as StarVLA's:
#   eval.sh TASK [TASK_CONFIG [CKPT_SETTING [SEED [GPU [CHECKPOINT [PORT [HOST]]]]]]]
# CKPT_SETTING names the results and a CHECKPOINT says beside what they go; run_policy_server.sh serves it. SEED: which
# hundred thousand scenes. Words after the eighth go to vla-rollout.
#   ROBOTWIN_PATH=~/RoboTwin ROBOTWIN_PYTHON=~/miniconda3/envs/RoboTwin/bin/python \
#     bash examples/Robotwin/eval_files/eval.sh adjust_bottle demo_clean mine 0 0 runs/robotwin/train/checkpoints/steps_150000
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"
task="${1:?a task of RoboTwin}" config="${2:-demo_clean}" name="${3:-starvla_demo}" split="${4:-0}" gpu="${5:-}"
checkpoint="${6:-}" port="${7:-${ROBOTWIN_POLICY_PORT:-10093}}" host="${8:-${ROBOTWIN_POLICY_HOST:-127.0.0.1}}"
results="$here/runs/robotwin/rollout"
if [[ -n "$checkpoint" ]]; then
  checkpoint="$(cd "$here" && realpath -m "$checkpoint")"
  results="$(dirname "$checkpoint")/output_eval/$(basename "$checkpoint")"
fi
if [[ -n "$gpu" ]]; then export CUDA_VISIBLE_DEVICES="$gpu"; fi
cd "${ROBOTWIN_PATH:?a checkout of RoboTwin}"
sim="${ROBOTWIN_PYTHON:-python}"
"$sim" -c "import vla_serve" 2>/dev/null || {
  echo "ROBOTWIN_PYTHON: $sim has no vla-serve; examples/Robotwin/README.md says how to install it" >&2; exit 1
}
"$sim" -m vla_serve.rollout_cli --address "$host:$port" --env robotwin --task "$task" \
  --episodes "${EPISODES:-100}" --seed 0 --workers "${WORKERS:-1}" --execute_steps "${EXECUTE_STEPS:-50}" \
  --out "${OUT:-$results/${name}_${config}_$split/$task}" --env.task_config "$config" --env.split "$split" \
  --env.scenes "${SCENES:-consecutive}" "${@:9}"
