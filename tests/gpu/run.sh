#!/usr/bin/env bash
# The CUDA tests and the benchmark on the GPU of this machine, with a report into FOLDER.
#     bash .gpu/run.sh [FOLDER] [options of tests/gpu/run.py]
# The kit lies beside a copy of the sources. PYTHON names another interpreter than python3.
set -euo pipefail
kit=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
command -v "$python" > /dev/null || { echo "error: there is no $python; install Python" >&2; exit 2; }
exec "$python" "$kit/../tests/gpu/run.py" --kit "$kit" --out "${1:-gpu-report}" "${@:2}"
