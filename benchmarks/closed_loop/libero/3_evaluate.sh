#!/usr/bin/env bash
# Success over official initial states, through the server, and that of the expert beside. KINDS: plain, language and swap of
# LIBERO-PRO, other (the sentences of the other TASKS that ask for something else in the same scene; JOBS of them at once, which
# share the WORKERS), expert, expert_swap. What is finished is skipped, what was cut off goes on, and more EPISODES add to them;
# results.json and the table are in RESULTS.
#   SEED=0 EPISODES=50 DEVICE=cuda WORKERS=16 bash benchmarks/closed_loop/libero/3_evaluate.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
RESULTS=${RESULTS:-$ROOT/results}
EPISODES=${EPISODES:-5}
read -ra names <<<"$TASKS"
name_tasks "${names[@]}"
mkdir -p "$RESULTS/$RUN"
until_s=$((SECONDS + ${SECONDS_AT_MOST:-100000}))

# roll_out OUT WORD...: into OUT below RESULTS.
roll_out() {
  local out=$RESULTS/$1
  shift
  if grep -qs '^ "complete": true' "$out/results.json" && grep -qs "^  \"episodes\": $EPISODES," "$out/results.json"; then return; fi
  ((until_s > SECONDS)) || { echo "$out: no time left"; return; }
  mkdir -p "$(dirname "$out")"
  # INT, upon which the simulators end too; what is done stays in results.json.
  timeout --foreground --signal INT --kill-after 20 $((until_s - SECONDS)) "$simulators/vla-rollout" --env libero --out "$out" \
    --episodes "$EPISODES" --seed "${EVAL_SEED:-0}" --workers "${its_workers:-$WORKERS}" "${rendering[@]}" "$@" >"$out.log" 2>&1 ||
    { echo "$out: not finished"; tail -n 3 "$out.log"; }
}

kinds=${KINDS:-plain other language swap expert expert_swap}
for kind in $kinds; do
  # The expert needs no pictures: the smaller of two.
  case $kind in
    expert) roll_out expert/plain "${tasks[@]}" --policy expert --videos none --env.cameras '[wrist]' ;;
    expert_swap) roll_out expert/swap "${tasks[@]}" --policy expert --videos none --env.cameras '[wrist]' --env.variant swap ;;
  esac
done
if [[ " $kinds " =~ \ (plain|other|language|swap)\  ]]; then
  checkpoint=${CHECKPOINT:-$(find "$ROOT/$RUN/checkpoints" -maxdepth 1 -name 'steps_*' | sort -V | tail -n 1)}
  port_file=$(mktemp -u)
  "${run[@]}" python -m vla_serve.server_cli --ckpt_path "$checkpoint" --device "${DEVICE:-cpu}" --port 0 \
    --port_file "$port_file" ${SERVE_OPTIONS:-} >"$RESULTS/serve_$RUN.log" 2>&1 &
  server=$!
  trap 'kill "$server" 2>/dev/null || true; wait "$server" || true' EXIT
  until [[ -f $port_file ]]; do
    kill -0 "$server" 2>/dev/null || { tail "$RESULTS/serve_$RUN.log"; exit 1; }
    sleep 0.2
  done
  policy=(--address "127.0.0.1:$(<"$port_file")" --execute_steps "${EXECUTE_STEPS:-16}" --videos "${VIDEOS:-failures}")
  for kind in $kinds; do
    case $kind in
      plain) roll_out "$RUN/plain" "${tasks[@]}" "${policy[@]}" ;;
      language | swap) roll_out "$RUN/$kind" "${tasks[@]}" "${policy[@]}" --env.variant "$kind" ;;
      other)
        jobs=${JOBS:-1} others=()
        its_workers=$((WORKERS / jobs > 1 ? WORKERS / jobs : 1))
        while read -r task said; do
          while ((${#others[@]} >= jobs)); do
            wait "${others[0]}"
            others=("${others[@]:1}")
          done
          roll_out "$RUN/other_${task}_$said" --task "$task" --instruction_from "$said" "${policy[@]}" &
          others+=($!)
        done < <("${run[@]}" python $HERE/table.py --others "${names[@]}")
        for other in "${others[@]}"; do wait "$other"; done
        its_workers=$WORKERS
        ;;
    esac
  done
fi
"${run[@]}" python $HERE/table.py --results "$RESULTS" --out "$RESULTS/table.md"
