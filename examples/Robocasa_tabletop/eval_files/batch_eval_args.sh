#!/usr/bin/env bash
# The 24 tasks, or TASKS, in the simulator's environment: sim_python. Words as StarVLA's, then those of vla-rollout:
#   batch_eval_args.sh [CHECKPOINT [SIMULATORS [MAX_STEPS [EXECUTE_STEPS]]]]
# The checkpoint says beside what the results go; run_policy_server.sh serves it.
#   sim_python=~/miniconda3/envs/robocasa/bin/python bash examples/Robocasa_tabletop/eval_files/batch_eval_args.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
sim="${sim_python:-python}" out="${OUT:-runs/robocasa/rollout}" given=()
while [[ $# -gt 0 && "$1" != --* && ${#given[@]} -lt 4 ]]; do given+=("$1"); shift; done
if [[ -n "${given[0]:-}" ]]; then out="${OUT:-$(dirname "${given[0]}")/output_eval/$(basename "${given[0]}")}"; fi
"$sim" -c "import vla_serve" 2>/dev/null || {
  echo "sim_python: $sim has no vla-serve; examples/Robocasa_tabletop/README.md says how to install it" >&2; exit 1
}
all="$("$sim" -c 'from vla_core.envs.gr1_tabletop import TASKS; print(*TASKS)')"
tasks=()
for task in ${TASKS:-$all}; do tasks+=(--task "$task"); done
"$sim" -m vla_serve.rollout_cli --address "127.0.0.1:${PORT:-${port:-10093}}" --env gr1_tabletop "${tasks[@]}" \
  --episodes "${EPISODES:-50}" --seed 0 --workers "${WORKERS:-${given[1]:-2}}" --execute_steps "${EXECUTE_STEPS:-${given[3]:-12}}" \
  --out "$out" --env.max_steps "${MAX_STEPS:-${given[2]:-720}}" "$@"
