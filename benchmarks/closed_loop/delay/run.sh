#!/usr/bin/env bash
# Success against delay on Meta-World: a robot that waits for its answers, one that goes on with the chunk before, and
# one whose answers continue that chunk (real-time chunking). Needs a policy of benchmarks/closed_loop/mt50.
#   CHECKPOINT=runs/mt50/seed_0/checkpoints/steps_12000 bash benchmarks/closed_loop/delay/run.sh
source "$(dirname "${BASH_SOURCE[0]}")/../mt50/_common.sh"
HERE=benchmarks/closed_loop/delay
CHECKPOINT=${CHECKPOINT:?say which checkpoint}
RESULTS=${RESULTS:-$ROOT/delay}
DELAYS=${DELAYS:-0 2 4 8}            # control steps of 12.5 ms: 0, 25, 50 and 100 ms
MODES=${MODES:-waits goes_on continues}
TEN="button-press-topdown coffee-button door-open drawer-open faucet-close handle-press plate-slide reach sweep-into window-open"
tasks=()
for task in ${DELAY_TASKS:-$TEN}; do tasks+=(--task "$task"); done
mkdir -p "$RESULTS"
serve "$CHECKPOINT" "$RESULTS/serve.log"
for delay in $DELAYS; do
  for mode in $MODES; do
    case $mode in
      waits) options=(--hold_steps "$delay") ;;
      goes_on) options=(--delay_steps "$delay") ;;
      continues) options=(--delay_steps "$delay" --rtc) ;;
    esac
    "${run[@]}" python -m vla_serve.rollout_cli --address "$address" --out "$RESULTS/${mode}_$delay" \
      --episodes "${EPISODES:-10}" --seed "${EVAL_SEED:-20000}" --workers "${SIMULATORS:-$WORKERS}" --videos none \
      --execute_steps "${EXECUTE_STEPS:-8}" "${options[@]}" "${tasks[@]}" "${simulator[@]}" >"$RESULTS/${mode}_$delay.log" 2>&1 ||
      { tail "$RESULTS/${mode}_$delay.log"; exit 1; }
  done
done
"${run[@]}" python $HERE/table.py --results "$RESULTS" --out "$RESULTS/table.md"
