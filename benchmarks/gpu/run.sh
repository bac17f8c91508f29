#!/usr/bin/env bash
# Run the check on the GPU machine, from the directory that holds .gpu (prepare.sh):
#   bash .gpu/run.sh --budget 330
# Arguments are those of `python -m benchmarks.gpu`. Results are in $OUT, else in gpu_out/.
set -u
carried="${GPU_CARRIED:-$PWD/.gpu}"
export OUT="${OUT:-$PWD/gpu_out}"
scratch="$(mktemp -d)"
mkdir -p "$OUT" "$scratch/project"
OUT="$(cd "$OUT" && pwd)"
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
  --target "$scratch/site" "$carried"/whl/*.whl || exit
tar -xzf "$carried/project.tar.gz" -C "$scratch/project" || exit
export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.used,clocks.sm,driver_version --format=csv 2>/dev/null
cd "$scratch/project" && exec python3 -m benchmarks.gpu "$@"
