# What the three steps share; sourced by them. Everything is set by environment variables.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
HERE=benchmarks/closed_loop/mt50
ROOT=${ROOT:-runs/mt50}              # data set, runs and results
DATA=${DATA:-$ROOT/data}
SEED=${SEED:-0}                      # of training: weights, order, augmentation, noise
RUN=${RUN:-seed_$SEED}               # name of the training run
# Processes of the recorder and of the loader; nproc prints OMP_NUM_THREADS where that is set.
WORKERS=${WORKERS:-$(env -u OMP_NUM_THREADS nproc)}
CAMERAS=${CAMERAS:-[corner4,gripperPOV]}
IMAGE_SIZE=${IMAGE_SIZE:-128}
MAX_STEPS=${MAX_STEPS:-500}          # Meta-World's own limit of an episode
export OMP_NUM_THREADS=1 MUJOCO_GL=${MUJOCO_GL:-egl} PYTHONUNBUFFERED=1
run=(uv run)
[[ ${NO_UV:-} == 1 ]] && run=()      # where the packages are installed or on PYTHONPATH
TASKS=${TASKS:-$("${run[@]}" python -c 'from vla_core.envs.metaworld import MetaWorldEnv; print(*MetaWorldEnv.tasks())')}
tasks=()
for task in $TASKS; do tasks+=(--task "$task"); done
simulator=(--env metaworld --env.start task --env.max_steps "$MAX_STEPS" --env.image_size "$IMAGE_SIZE" --env.cameras "$CAMERAS")
# serve CHECKPOINT LOG: start a server that ends with the script, wait until it listens, and leave its HOST:PORT in
# `address`.
serve() {
  local port_file
  port_file=$(mktemp -u)
  "${run[@]}" python -m vla_serve.server_cli --ckpt_path "$1" --device "${DEVICE:-cuda}" --port 0 \
    --port_file "$port_file" ${SERVE_OPTIONS:-} >"$2" 2>&1 &
  server=$!
  trap 'kill "$server" 2>/dev/null || true; wait "$server" || true' EXIT
  until [[ -f $port_file ]]; do
    kill -0 "$server" 2>/dev/null || { tail "$2"; exit 1; }
    sleep 0.2
  done
  address=127.0.0.1:$(<"$port_file")
}
