# What the three steps share; sourced by them. Everything is set by environment variables.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
HERE=benchmarks/closed_loop/libero
ROOT=${ROOT:-runs/closed_libero}     # data set, runs and results
DATA=${DATA:-$ROOT/data}
SEED=${SEED:-0}                      # of training: weights, order, augmentation
SECOND_BOWLS=${SECOND_BOWLS:-}       # TASKS in whose scenes another sentence is learnt too, which asks for the second bowl
RUN=${RUN:-seed_$SEED}               # name of the training run
[[ -z $SECOND_BOWLS ]] || RUN=${RUN%_second}_second
WORKERS=${WORKERS:-$(env -u OMP_NUM_THREADS nproc)} # simulators; a simulator takes 0.7 GB of memory
SIZE=${SIZE:-128}                    # H = W of both pictures
TASKS=${TASKS:-libero_spatial_0 libero_spatial_1 libero_spatial_2 libero_spatial_8}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MUJOCO_GL=${MUJOCO_GL:-egl} PYTHONUNBUFFERED=1
# The simulator's own environment (examples/LIBERO/install_libero.sh), and that of training and serving.
simulators=${LIBERO_ENV:-runs/libero/env}/bin
[[ -x $simulators/vla-rollout ]] || { echo "no simulator in $simulators: bash examples/LIBERO/install_libero.sh"; exit 1; }
run=(uv run)
[[ ${NO_UV:-} == 1 ]] && run=()      # where the packages are installed or on PYTHONPATH
rendering=(--env.rendering fast --env.image_size "$SIZE")
# Of several tasks into `tasks`.
name_tasks() {
  tasks=()
  local task
  for task in "$@"; do tasks+=(--task "$task"); done
}
