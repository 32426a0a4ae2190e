#!/usr/bin/env bash
# The comparison of fusions from nothing to the table; what is finished is skipped, so it can be run again and again.
#   bash benchmarks/fusion/run.sh                 on a machine with a GPU and 16 cores, in the repository's root
#   SEEDS=0 FUSIONS=none,gated EPISODES=50 bash benchmarks/fusion/run.sh
#   ABLATIONS=1 bash benchmarks/fusion/run.sh     configs/ablations/ab_b_*.yaml instead of the fusions
#   CONTROL=1 bash benchmarks/fusion/run.sh       none, and position_3d with every depth at one metre, into control/
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
HERE=benchmarks/fusion
DATA=${DATA:-runs/fusion}
TASKS=drawer-open,button-press-topdown,door-open,coffee-button
[[ ${CONTROL:-} == 1 ]] && FUSIONS=${FUSIONS:-none,@$HERE/control_image.yaml,@$HERE/control_pose.yaml}
FUSIONS=${FUSIONS:-none,mean_pool,aligned_concat,cross_attention,gated,language_guided,head_context,align_loss,@$HERE/position_3d.yaml,@$HERE/position_3d_mean.yaml,@$HERE/position_3d_predicted.yaml}
[[ ${ABLATIONS:-} == 1 ]] && FUSIONS=$(printf ',@%s' configs/ablations/ab_b_*.yaml) && FUSIONS=${FUSIONS:1}
train=train policies=policies options=() results=$HERE
if [[ ${CONTROL:-} == 1 ]]; then
  train=train_constant policies=policies_control options=(--constant_depth) results=$HERE/control
  mkdir -p "$results"
fi
SEEDS=${SEEDS:-0 1 2}
EPISODES=${EPISODES:-25} # a task, camera setting and training seed
JOBS=${JOBS:-11}
SHARDS=${SHARDS:-4}
SAME=0,6   # degrees by which the cameras of the demonstrations differ from episode to episode
SHIFT=15,25
WORKERS=${WORKERS:-$(env -u OMP_NUM_THREADS nproc)} # simulators of the recorder; nproc prints OMP_NUM_THREADS where that is set
export OMP_NUM_THREADS=1 MUJOCO_GL=${MUJOCO_GL:-egl}
run=(uv run)
[[ ${NO_UV:-} == 1 ]] && run=()

record() { # out, further options
  local out=$1 task tasks=()
  shift
  [[ -d $DATA/$out ]] && return
  for task in ${TASKS//,/ }; do tasks+=(--task "$task"); done
  "${run[@]}" python -m vla_data.cli record --env metaworld --format arrays --workers "$WORKERS" "${tasks[@]}" \
    --env.image_size 96 --env.cameras "[corner4,corner3]" --env.depth true --env.intrinsics true \
    --env.extrinsics true --out "$DATA/$out" "$@"
}

record train --episodes 60 --noise 0.3 --env.camera_orbit "[$SAME]"
record held_same --episodes 10 --seed 60000 --env.camera_orbit "[$SAME]"
record held_shift --episodes 10 --seed 60000 --env.camera_orbit "[$SHIFT]"
if [[ ! -f $HERE/encoder.safetensors ]]; then # kept with the repository, so that all rows share one encoder
  record pretrain --episodes 80 --seed 70000 --noise 0.3 --env.camera_orbit "[0,30]"
  "${run[@]}" python $HERE/pretrain.py --data "$DATA/pretrain" --out $HERE/encoder.safetensors --seconds 90 --steps 1000000
fi
if [[ $train == train_constant && ! -d $DATA/$train ]]; then
  "${run[@]}" python $HERE/constant_depth.py "$DATA/train" "$DATA/$train"
fi
for seed in $SEEDS; do
  "${run[@]}" python -m vla_train ablate --base $HERE/base.yaml --axis "fusion=$FUSIONS" --seeds "$seed" --jobs "$JOBS" \
    --out "$DATA/$policies" "datasets.train.0.path=$DATA/$train"
done
for ((shard = 0; shard < SHARDS; shard++)); do
  "${run[@]}" python $HERE/evaluate.py "${options[@]}" --runs "$DATA/$policies" --data "$DATA" --tasks $TASKS --same $SAME --shift $SHIFT \
    --episodes "$EPISODES" --shard "$shard/$SHARDS" --out "$results/results.jsonl" &
done
wait
"${run[@]}" python $HERE/table.py --results "$results/results.jsonl" --out "$results"
