#!/usr/bin/env bash
# The ten public test instances of each of TASKS (all: the 50 of tasks.txt), in the simulator's environment: sim_python.
# SENTENCES is meta/tasks.jsonl of the demonstrations. Further words go to vla-rollout. The last line's score is the
# challenge's q_score. TASK_NAME, TASKS_JSONL_PATH and WRAPPERS, as StarVLA calls them, will do as well.
#   SENTENCES=data/2025-challenge-demos/meta/tasks.jsonl TASKS=turning_on_radio bash examples/Behavior/start_client.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here/../.."
sim="${sim_python:-python}" names="${TASKS:-${TASK_NAME:-turning_on_radio}}" tasks=()
if [[ "$names" == all ]]; then names="$(sed 's/#.*//' "$here/tasks.txt")"; fi
for task in $names; do tasks+=(--task "$task"); done
"$sim" -c "import vla_serve" 2>/dev/null || {
  echo "sim_python: $sim has no vla-serve; examples/Behavior/README.md says how to install it" >&2; exit 1
}
"$sim" -m vla_serve.rollout_cli --address "127.0.0.1:${PORT:-${port:-10093}}" --env behavior "${tasks[@]}" \
  --episodes 10 --seed 0 --workers 1 --execute_steps "${EXECUTE_STEPS:-25}" --out "${OUT:-runs/behavior/rollout}" \
  --env.sentences "${SENTENCES:-${TASKS_JSONL_PATH:?SENTENCES: meta/tasks.jsonl of the demonstrations}}" \
  --env.wrapper "${WRAPPERS:-DefaultWrapper}" "$@"
