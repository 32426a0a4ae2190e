#!/usr/bin/env bash
# Serves CHECKPOINT on 127.0.0.1:PORT until it is stopped; words as StarVLA's: run_policy_server.sh CHECKPOINT [GPU [PORT]].
# Words after the third go to vla-serve (uv run vla-serve --help).
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
checkpoint="${1:-${CHECKPOINT:-runs/robotwin/train/checkpoints/steps_150000}}"
if [[ -n "${2:-}" ]]; then export CUDA_VISIBLE_DEVICES="$2"; fi
exec uv run vla-serve --ckpt_path "$checkpoint" --port "${3:-${PORT:-${port:-${base_port:-10093}}}}" --device "${DEVICE:-cuda}" --use_bf16 "${@:4}"
