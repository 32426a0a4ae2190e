#!/usr/bin/env bash
# The comparison of fusions from nothing to the table; what is finished is skipped, so it can be run again and again.
#   bash benchmarks/fusion/run.sh                 on a machine with a GPU and 16 cores, in the repository's root
#   SEEDS=0 FUSIONS=none,gated EPISODES=50 bash benchmarks/fusion/run.sh
#   ABLATIONS=1 bash benchmarks/fusion/run.sh     configs/ablations/ab_b_*.yaml instead of the fusions
#   CONTROL=1 bash benchmarks/fusion/run.sh       none, and position_3d with every depth at one metre, into control/
#   TOKENS=1 bash benchmarks/fusion/run.sh        seeds 3 to 5 of the fusions of tokens, none and mean_pool, into tokens/
#   LARGE=1 bash benchmarks/fusion/run.sh         six seeds of a policy of 52 M parameters, into large/
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source benchmarks/_beside.sh
HERE=benchmarks/fusion
DATA=${DATA:-runs/fusion}
TASKS=drawer-open,button-press-topdown,door-open,coffee-button
TOKEN_FUSIONS=none,mean_pool,aligned_concat,cross_attention,gated,language_guided,head_context,align_loss
data=train policies=policies base=("$HERE/base.yaml") options=() results=$HERE earlier=()
if [[ ${CONTROL:-} == 1 ]]; then
  FUSIONS=${FUSIONS:-none,@$HERE/control_image.yaml,@$HERE/control_pose.yaml}
  data=train_constant policies=policies_control options=(--constant_depth) results=$HERE/control
elif [[ ${TOKENS:-} == 1 ]]; then
  FUSIONS=${FUSIONS:-$TOKEN_FUSIONS} SEEDS=${SEEDS:-3 4 5} results=$HERE/tokens
  earlier=("$HERE/results.jsonl") # whose seeds the table adds
elif [[ ${LARGE:-} == 1 ]]; then
  FUSIONS=${FUSIONS:-none,@$HERE/position_3d.yaml,@$HERE/position_3d_predicted.yaml} SEEDS=${SEEDS:-0,1 2,3 4,5}
  policies=policies_large base+=("$HERE/base_large.yaml") results=$HERE/large
elif [[ ${ABLATIONS:-} == 1 ]]; then
  FUSIONS=$(printf ',@%s' configs/ablations/ab_b_*.yaml) && FUSIONS=${FUSIONS:1}
fi
FUSIONS=${FUSIONS:-$TOKEN_FUSIONS,@$HERE/position_3d.yaml,@$HERE/position_3d_mean.yaml,@$HERE/position_3d_predicted.yaml}
SEEDS=${SEEDS:-0 1 2}          # in turn; those with commas between them at once
EPISODES=${EPISODES:-25}       # a task, camera setting and training seed
JOBS=${JOBS:-11}               # runs at a time, each a core and a half
EVALUATORS=${EVALUATORS:-2}    # beside them, each with eight simulators
RESULTS=${RESULTS:-$results}
SAME=0,6   # degrees by which the cameras of the demonstrations differ from episode to episode
SHIFT=15,25
WORKERS=${WORKERS:-$(env -u OMP_NUM_THREADS nproc)} # simulators of the recorder; nproc prints OMP_NUM_THREADS where that is set
export OMP_NUM_THREADS=1 MUJOCO_GL=${MUJOCO_GL:-egl}
run=(uv run)
[[ ${NO_UV:-} == 1 ]] && run=()

record() { # out, simulators, further options
  local out=$1 workers=$2 task tasks=()
  shift 2
  [[ -d $DATA/$out ]] && return
  for task in ${TASKS//,/ }; do tasks+=(--task "$task"); done
  "${run[@]}" python -m vla_data.cli record --env metaworld --format arrays --workers "$workers" "${tasks[@]}" \
    --env.image_size 96 --env.cameras "[corner4,corner3]" --env.depth true --env.intrinsics true \
    --env.extrinsics true --out "$DATA/$out" "$@"
}

record_all() { # side by side: their simulators take longest to start
  local pid pids=() few=$((WORKERS < 8 ? WORKERS : 8)) held=(--episodes "${HELD_OUT:-10}" --seed 60000)
  beside record train "$WORKERS" --episodes "${DEMONSTRATIONS:-60}" --noise 0.3 --env.camera_orbit "[$SAME]"
  pids+=($!)
  beside record held_same "$few" "${held[@]}" --env.camera_orbit "[$SAME]"
  pids+=($!)
  beside record held_shift "$few" "${held[@]}" --env.camera_orbit "[$SHIFT]"
  pids+=($!)
  for pid in "${pids[@]}"; do wait "$pid"; done
  if [[ ! -f $HERE/encoder.safetensors ]]; then # kept with the repository, so that all rows share one encoder
    record pretrain "$WORKERS" --episodes 80 --seed 70000 --noise 0.3 --env.camera_orbit "[0,30]"
    "${run[@]}" python $HERE/pretrain.py --data "$DATA/pretrain" --out $HERE/encoder.safetensors --seconds 90 --steps 1000000
  fi
  if [[ $data == train_constant && ! -d $DATA/$data ]]; then
    "${run[@]}" python $HERE/constant_depth.py "$DATA/train" "$DATA/$data"
  fi
}

train() {
  local seed failed=0
  for seed in $SEEDS; do # a run that failed is tried again by the next call
    "${run[@]}" python -m vla_train ablate --base "${base[@]}" --axis "fusion=$FUSIONS" --seeds "$seed" --jobs "$JOBS" \
      --out "$DATA/$policies" "datasets.train.0.path=$DATA/$data" ${STEPS:+"trainer.max_steps=$STEPS"} || failed=1
  done
  return $failed
}

mkdir -p "$DATA" "$RESULTS"
exec 9>"$DATA/.recording"
flock 9 # one of several that run side by side records for all
record_all
exec 9>&-
beside train
pids=($!)
for ((i = 0; i < EVALUATORS; i++)); do
  beside "${run[@]}" python $HERE/evaluate.py "${options[@]}" --runs "$DATA/$policies" --data "$DATA" --tasks $TASKS --same $SAME --shift $SHIFT \
    --episodes "$EPISODES" --beside "${pids[0]}" --out "$RESULTS/results.jsonl"
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
"${run[@]}" python $HERE/table.py --results "${earlier[@]}" "$RESULTS/results.jsonl" --out "$RESULTS"
exit $failed
