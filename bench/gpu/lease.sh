#!/usr/bin/env bash
# Builds zo_kernels in place, tests and measures it on a GPU, and writes all of that to one folder, in at most 7 minutes
# and without a network. The same command goes on with what is left.
# Usage: bash bench/gpu/lease.sh FOLDER [FLAGS of bench.gpu]
set -euo pipefail
folder=$(realpath -m "$1")
shift
cd "$(dirname "$0")/../.."
mkdir -p "$folder"
export ZO_KERNELS_CUDA=${ZO_KERNELS_CUDA-1} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY-passive}
# Built once: the folder knows from what.
sources=$(find csrc python setup.py CMakeLists.txt -type f | LC_ALL=C sort | xargs cat | sha256sum)
if [ "$(cat "$folder/built" 2>/dev/null)" != "$ZO_KERNELS_CUDA $sources" ] || ! python3 -c "import zo_kernels._C"; then
  python3 setup.py build_ext --inplace >"$folder/build.log" 2>&1 || { tail -n 40 "$folder/build.log" && exit 1; }
  echo "$ZO_KERNELS_CUDA $sources" >"$folder/built"
fi
{ python3 -m zo_kernels && nvidia-smi && nvcc --version; } >"$folder/machine.txt" 2>&1 || true
echo "built in $SECONDS s"
minutes=$(python3 -c "from bench.gpu.plan import MINUTES; print(max(0.1, MINUTES - $SECONDS / 60))")
python3 -m bench.gpu --out "$folder" --minutes "$minutes" "$@" 2>&1 | tee -a "$folder/bench.log"
