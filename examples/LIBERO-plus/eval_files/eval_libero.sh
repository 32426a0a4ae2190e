#!/usr/bin/env bash
# All tasks of a SUITE (libero_spatial, libero_object, libero_goal, libero_10), or the numbers FIRST to LAST of it, one
# episode each, in the simulator's environment: LIBERO_Python. Further words go to vla-rollout. At the end the success
# by kind of perturbation, which LIBERO_HOME (a checkout of LIBERO-plus) lists. The server is at host and port (or
# base_port); as of StarVLA's, your_ckpt says beside what the results go, and gpu_id is where pictures are rendered.
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here/../../.."
suite="${SUITE:-libero_spatial}" sim="${LIBERO_Python:-python}"
kinds="${LIBERO_HOME:?a checkout of LIBERO-plus}/libero/libero/benchmark/task_classification.json"
"$sim" -c "import vla_serve" 2>/dev/null || {
  echo "LIBERO_Python: $sim has no vla-serve; examples/LIBERO-plus/README.md says how to install it" >&2; exit 1
}
declare -A count=([libero_spatial]=2402 [libero_object]=2518 [libero_goal]=2591 [libero_10]=2519)
if [[ -z "${count[$suite]:-}" ]]; then echo "SUITE: no '$suite' in LIBERO-plus, which has ${!count[*]}" >&2; exit 2; fi
tasks=()
for number in $(seq "${FIRST:-0}" "${LAST:-$((count[$suite] - 1))}"); do tasks+=(--task "${suite}_$number"); done
out="${OUT:-}"
if [[ -n "${your_ckpt:-}" ]]; then out="${OUT:-$(dirname "$your_ckpt")/output_eval/$(basename "$your_ckpt")_$suite}"; fi
out="${out:-runs/libero_plus/rollout_$suite}"
if [[ -n "${gpu_id:-}" ]]; then export CUDA_VISIBLE_DEVICES="$gpu_id"; fi
"$sim" -m vla_serve.rollout_cli --address "${host:-127.0.0.1}:${PORT:-${port:-${base_port:-10093}}}" --env libero_plus "${tasks[@]}" --episodes 1 --seed 0 \
  --workers "${WORKERS:-2}" --execute_steps "${EXECUTE_STEPS:-8}" --videos "${VIDEOS:-none}" --out "$out" "$@"
"$sim" "$here/by_perturbation.py" "$out/results.json" "$kinds"
