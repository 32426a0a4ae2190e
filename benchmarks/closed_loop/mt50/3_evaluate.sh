#!/usr/bin/env bash
# Success over unseen starts, through the server: with the phrasings of the demonstrations, then with held-out ones.
# What is finished is skipped; results.json and the table are in RESULTS.
# HIDE=images: once more with black images, beside.
#   SEED=0 EPISODES=10 DEVICE=cuda SIMULATORS=24 bash benchmarks/closed_loop/mt50/3_evaluate.sh
export CAMERAS=${CAMERAS:-[corner4,topview,gripperPOV]} # place on the table, height, the last centimetres
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
RESULTS=${RESULTS:-$ROOT/results}
SIMULATORS=${SIMULATORS:-$((WORKERS * 3 / 2))}
checkpoint=$(find "$ROOT/$RUN/checkpoints" -maxdepth 1 -name 'steps_*' | sort -V | tail -n 1)
mkdir -p "$RESULTS/$RUN"
serve "$checkpoint" "$RESULTS/serve_$RUN.log"
for phrasings in ${PHRASINGS:-train heldout}; do
  out=$RESULTS/$RUN/$phrasings${HIDE:+_without_$HIDE}
  [[ -f $out/results.json ]] && grep -q '"complete": true' "$out/results.json" && continue
  "${run[@]}" python -m vla_serve.rollout_cli --address "$address" --out "$out" \
    --episodes "${EPISODES:-10}" --seed "${EVAL_SEED:-10000}" --workers "$SIMULATORS" --videos none \
    --execute_steps "${EXECUTE_STEPS:-8}" "${tasks[@]}" "${simulator[@]}" --env.phrasings "$phrasings" \
    ${HIDE:+--hide "$HIDE"} >"$out.log" 2>&1 || { tail "$out.log"; exit 1; }
done
"${run[@]}" python $HERE/table.py --results "$RESULTS" --out "$RESULTS/table.md"
