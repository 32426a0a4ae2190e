#!/usr/bin/env bash
# Serves a checkpoint, evaluates tasks and ends the server; options as StarVLA's:
#   start_eval.sh -m MODE -n NAME -c CHECKPOINT [-s SEED] [-j JOBS] [-p PORT] [--server-timeout SECONDS] TASK...
# MODE: demo_clean or demo_randomized. NAME: of the results. TASK: names, `all` (tasks.txt), or a file with a name a line.
# Without -c a server runs already on PORT. JOBS simulators run at once. ROBOTWIN_PATH: a checkout of RoboTwin,
# ROBOTWIN_PYTHON: its environment's Python.
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
files="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)" here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"
mode="" name="" checkpoint="" split="${ROBOTWIN_SEED:-0}" jobs="${ROBOTWIN_JOBS_PER_GPU:-1}" words=()
port="${ROBOTWIN_BASE_PORT:-10093}" patience="${ROBOTWIN_SERVER_TIMEOUT:-600}"
while [[ $# -gt 0 ]]; do
  if [[ "$1" == -* && $# -eq 1 ]]; then echo "start_eval.sh: $1 is unknown, or needs a word behind it" >&2; exit 2; fi
  case "$1" in
    -m | --mode) mode="$2" ;;
    -n | --name) name="$2" ;;
    -c | --ckpt) checkpoint="$2" ;;
    -s | --seed) split="$2" ;;
    -j | --jobs-per-gpu) jobs="$2" ;;
    -p | --base-port) port="$2" ;;
    --server-timeout) patience="$2" ;;
    -*) echo "start_eval.sh: unknown option $1" >&2; exit 2 ;;
    *) words+=("$1"); shift; continue ;;
  esac
  shift 2
done
: "${mode:?say -m demo_clean or -m demo_randomized}" "${name:?say -n NAME, what the results are called}"
: "${words[0]:?name a task, all, or a file of tasks}" "${ROBOTWIN_PATH:?a checkout of RoboTwin}"
sim="${ROBOTWIN_PYTHON:-python}"
(cd "$ROBOTWIN_PATH" && "$sim" -c "import vla_serve") 2>/dev/null || {
  echo "ROBOTWIN_PYTHON: $sim has no vla-serve; examples/Robotwin/README.md says how to install it" >&2; exit 1
}
tasks=()
for word in "${words[@]}"; do
  if [[ "$word" == all ]]; then word="$files/tasks.txt"; fi
  if [[ -f "$word" ]]; then word="$(sed 's/#.*//' "$word")"; fi
  for task in ${word//,/ }; do tasks+=(--task "$task"); done
done

results="$here/runs/robotwin/rollout"
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
if [[ -n "$checkpoint" ]]; then
  checkpoint="$(cd "$here" && realpath -m "$checkpoint")"
  results="$(dirname "$checkpoint")/output_eval/$(basename "$checkpoint")"
  if listening; then echo "start_eval.sh: something listens on port $port already; say another with -p" >&2; exit 1; fi
  ready="$(mktemp -d)" # the server listens long before it answers: it writes a file then
  bash "$files/run_policy_server.sh" "$checkpoint" "" "$port" --port_file "$ready/port" &
  server=$!
  trap 'kill "$server" 2>/dev/null || true; rm -rf "$ready"' EXIT
  until [[ -e "$ready/port" ]]; do
    kill -0 "$server" 2>/dev/null || { echo "start_eval.sh: the server has ended" >&2; exit 1; }
    if ((SECONDS > patience)); then echo "start_eval.sh: no server within $patience s" >&2; exit 1; fi
    sleep 1
  done
fi
if ((jobs > 1)); then scenes=own; else scenes=consecutive; fi
cd "$ROBOTWIN_PATH"
"$sim" -m vla_serve.rollout_cli --address "127.0.0.1:$port" --env robotwin "${tasks[@]}" \
  --episodes "${EPISODES:-100}" --seed 0 --workers "$jobs" --execute_steps "${EXECUTE_STEPS:-50}" \
  --out "${OUT:-$results/${name}_${mode}_$split}" --env.task_config "$mode" --env.split "$split" \
  --env.scenes "${SCENES:-$scenes}"
