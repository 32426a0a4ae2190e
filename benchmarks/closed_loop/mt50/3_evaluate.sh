#!/usr/bin/env bash
# Success over unseen starts, through the server: with the phrasings of the demonstrations, then with held-out ones.
# What is finished is skipped; results.json and the table are in RESULTS.
#   SEED=0 EPISODES=10 DEVICE=cuda SIMULATORS=24 bash benchmarks/closed_loop/mt50/3_evaluate.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
RESULTS=${RESULTS:-$ROOT/results}
SIMULATORS=${SIMULATORS:-$((WORKERS * 3 / 2))}
checkpoint=$(find "$ROOT/$RUN/checkpoints" -maxdepth 1 -name 'steps_*' | sort -V | tail -n 1)
port_file=$(mktemp -u)
mkdir -p "$RESULTS"
"${run[@]}" python -m vla_serve.server_cli --ckpt_path "$checkpoint" --device "${DEVICE:-cuda}" --port 0 \
  --port_file "$port_file" ${SERVE_OPTIONS:-} >"$RESULTS/serve_$RUN.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" || true' EXIT
until [[ -f $port_file ]]; do
  kill -0 "$server" 2>/dev/null || { tail "$RESULTS/serve_$RUN.log"; exit 1; }
  sleep 0.2
done
for phrasings in ${PHRASINGS:-train heldout}; do
  out=$RESULTS/$RUN/$phrasings
  [[ -f $out/results.json ]] && grep -q '"complete": true' "$out/results.json" && continue
  "${run[@]}" python -m vla_serve.rollout_cli --address "127.0.0.1:$(<"$port_file")" --out "$out" \
    --episodes "${EPISODES:-10}" --seed "${EVAL_SEED:-10000}" --workers "$SIMULATORS" --videos none \
    --execute_steps "${EXECUTE_STEPS:-8}" "${tasks[@]}" "${simulator[@]}" --env.phrasings "$phrasings" \
    >"$RESULTS/rollout_${RUN}_$phrasings.log" 2>&1 || { tail "$RESULTS/rollout_${RUN}_$phrasings.log"; exit 1; }
done
"${run[@]}" python $HERE/table.py --results "$RESULTS" --out "$RESULTS/table.md"
