#!/usr/bin/env bash
# Serves the checkpoint (first word, CHECKPOINT, CKPT or your_ckpt) on 127.0.0.1:PORT (or port, base_port) until it is stopped, on
# DEVICE or the GPU that GPU_ID (or gpu_id) names. Further words go to vla-serve (uv run vla-serve --help).
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
checkpoint="${CHECKPOINT:-${CKPT:-${your_ckpt:-runs/libero/train/checkpoints/steps_2000}}}"
if [[ $# -gt 0 && "$1" != -* ]]; then checkpoint="$1"; shift; fi
gpu="${GPU_ID:-${gpu_id:-}}" device="${DEVICE:-cpu}"
if [[ -n "$gpu" ]]; then export CUDA_VISIBLE_DEVICES="$gpu"; device="${DEVICE:-cuda}"; fi
exec uv run vla-serve --ckpt_path "$checkpoint" --port "${PORT:-${port:-${base_port:-10093}}}" --device "$device" "$@"
