#!/usr/bin/env bash
# Demonstrations of the scripted expert, from starts that it draws itself: never an official initial state. PARTS after one
# another, each with EPISODES of every task; what is there is skipped, so that a later call with more PARTS adds to them.
# SECOND_BOWLS: those of the TASKS in whose scenes EPISODES are added that say the sentence for the second bowl.
#   EPISODES=50 WORKERS=16 RECORDERS=4 bash benchmarks/closed_loop/libero/1_record.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
source benchmarks/_beside.sh
read -ra names <<<"$TASKS"
RECORDERS=${RECORDERS:-1}
((RECORDERS <= ${#names[@]})) || RECORDERS=${#names[@]}
# Each recorder has its share of the tasks, for its simulators keep the scenes of all their tasks open.
for ((part = 0; part < ${PARTS:-1}; part++)); do
  recorders=()
  for ((share = 0; share < RECORDERS; share++)); do
    out=$DATA/part_$part
    ((RECORDERS == 1)) || out+=_$share
    [[ -d $out ]] && { echo "$out is there already"; continue; }
    its=()
    for ((i = share; i < ${#names[@]}; i += RECORDERS)); do its+=("${names[i]}"); done
    name_tasks "${its[@]}"
    beside "$simulators/vla-data" record --env libero "${tasks[@]}" --episodes "${EPISODES:-10}" --seed $((part * 1000)) \
      --noise "${NOISE:-0.1}" --workers $((WORKERS / RECORDERS > 1 ? WORKERS / RECORDERS : 1)) --format arrays --out "$out" \
      --env.start random "${rendering[@]}"
    recorders+=($!)
  done
  for recorder in "${recorders[@]}"; do wait "$recorder"; done
done
# The same scenes with the sentence that asks for the second bowl: pictures alone no longer say what to do.
if [[ -n $SECOND_BOWLS ]]; then
  [[ $SECOND_BOWLS != *libero_object* ]] || { echo "SECOND_BOWLS: $SECOND_BOWLS; only scenes of libero_spatial have one"; exit 2; }
  while read -r task said; do
    [[ " $SECOND_BOWLS " == *" $task "* ]] || continue
    [[ -d $DATA/second_$task ]] && { echo "$DATA/second_$task is there already"; continue; }
    "$simulators/vla-data" record --env libero --task "$task" --episodes "${EPISODES:-10}" --seed 500 --noise "${NOISE:-0.1}" \
      --workers "$WORKERS" --format arrays --out "$DATA/second_$task" --env.start random "${rendering[@]}" \
      --env.variant task --env.instruction_task "$said"
  done < <("${run[@]}" python $HERE/table.py --others "${names[@]}")
fi
