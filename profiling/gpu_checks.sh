#!/usr/bin/env bash
# Run all checks that need a GPU, in independent parts that a second call continues:
#
#   bash profiling/gpu_checks.sh OUT [--wheels WHEELS] [--minutes 9] [--only PART ...] [--list]
#   python profiling/gpu_checks_table.py OUT          the section "On a GPU" of docs/benchmarks.md
#
# PYTHON chooses the Python, which has torch and NumPy; WHEELS is made by profiling/wheels.py where there is a network.
# Without a GPU the parts run in tiny sizes on the CPU, which tests the script itself.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" "$root/profiling/gpu_checks.py" "$@"
