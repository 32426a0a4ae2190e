#!/usr/bin/env bash
# Demonstrations of Meta-World's scripted experts as plain arrays: about 22 GB for fifty episodes a task.
#   EPISODES=50 NOISE=0.2 WORKERS=16 bash benchmarks/closed_loop/mt50/1_record.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
if [[ -d $DATA ]]; then
  echo "$DATA is there already"
  exit
fi
"${run[@]}" python -m vla_data.cli record --format arrays --out "$DATA" --workers "$WORKERS" \
  --episodes "${EPISODES:-50}" --noise "${NOISE:-0.2}" "${tasks[@]}" "${simulator[@]}"
