#!/usr/bin/env bash
# The official episodes of a ROBOT (widowx, google_robot) in a SETTING (visual_matching, variant_aggregation), or of
# some TASKS, in the simulator's environment: sim_python. A first word that is no option is the checkpoint that is
# served, beside which the results go, a second one the port. Further words go to vla-rollout. It ends with the
# benchmark's averages.
#   sim_python=~/miniconda3/envs/simpler_env/bin/python bash examples/SimplerEnv/eval_files/start_simpler_env.sh
#   ROBOT=google_robot SETTING=variant_aggregation bash examples/SimplerEnv/eval_files/start_simpler_env.sh
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here/../../.."
sim="${sim_python:-python}" robot="${ROBOT:-widowx}" setting="${SETTING:-visual_matching}" port="${PORT:-${port:-10093}}"
out="${OUT:-runs/simpler/rollout_${robot}_$setting}"
if [[ $# -gt 0 && "$1" != --* ]]; then
  out="${OUT:-$(dirname "$1")/output_eval/$(basename "$1")_${robot}_$setting}"
  shift
  if [[ $# -gt 0 && "$1" != --* ]]; then port="$1"; shift; fi
fi
if [[ "$robot" == widowx ]]; then
  all="widowx_spoon_on_towel widowx_carrot_on_plate widowx_stack_cube widowx_put_eggplant_in_basket"
else
  pick=google_robot_pick
  all="${pick}_horizontal_coke_can ${pick}_vertical_coke_can ${pick}_standing_coke_can google_robot_move_near"
  for verb in open close; do
    for level in top middle bottom; do all+=" google_robot_${verb}_${level}_drawer"; done
  done
  all+=" google_robot_place_apple_in_closed_top_drawer"
fi
"$sim" -c "import vla_serve" 2>/dev/null || {
  echo "sim_python: $sim has no vla-serve; examples/SimplerEnv/README.md says how to install it" >&2; exit 1
}
count="import sys
from vla_core.envs.simpler_protocol import sweep
from vla_core.errors import ConfigError
try:
    for task in '${TASKS:-$all}'.split(): print(task, len(sweep(task, '$setting')))
except ConfigError as error:
    sys.exit(f'start_simpler_env.sh: {error}')"
counts="$("$sim" -c "$count")"
files=() failed=0
while read -r task whole; do
  "$sim" -m vla_serve.rollout_cli --address "127.0.0.1:$port" --env simpler --task "$task" --embodiment "$robot" \
    --episodes "${EPISODES:-$whole}" --seed 0 --workers "${WORKERS:-1}" --execute_steps "${EXECUTE_STEPS:-4}" \
    --out "$out/$task" --env.setting "$setting" "$@" </dev/null || failed=$?
  # 1 with results: some episodes did not run, the next task may.
  if [[ "$failed" -gt 1 || ! -f "$out/$task/results.json" ]]; then exit "$failed"; fi
  files+=("$out/$task/results.json")
done <<<"$counts"
"$sim" "$here/averages.py" "${files[@]}"
exit "$failed"
