#!/usr/bin/env bash
# One policy for all tasks. Stops in order after SECONDS_AT_MOST and goes on when called again.
#   SEED=0 STEPS=2200 SECONDS_AT_MOST=1200 bash benchmarks/closed_loop/libero/2_train.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
sets=()
parts=("$DATA"/part_*)
for task in $SECOND_BOWLS; do parts+=("$DATA/second_$task"); done
for part in "${parts[@]}"; do sets+=("{name: arrays, path: $part}"); done
status=0
# In the foreground: the signal is for the trainer alone, which saves; its workers read on until then.
timeout --foreground --preserve-status --signal TERM --kill-after 60 "${SECONDS_AT_MOST:-100000}" \
  "${run[@]}" python -m vla_train --config $HERE/train.yaml ${OVERLAY:+"$OVERLAY"} "datasets.train=[$(IFS=,; echo "${sets[*]}")]" \
  "run_root_dir=$ROOT" "run_id=$RUN" "seed=$SEED" ${STEPS:+"trainer.max_steps=$STEPS"} trainer.resume=auto "$@" || status=$?
case $status in
  0) echo "$ROOT/$RUN is trained" ;;
  75) echo "$ROOT/$RUN is not finished: call this again" ;;
  *) exit $status ;;
esac
