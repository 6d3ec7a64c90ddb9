#!/usr/bin/env bash
# Install fusionseg with the pinned versions. Run by the two image definitions, in the folder with the copied repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
# The compiler is for torch.compile; the rest of the program does without it.
apt-get update
apt-get install -y --no-install-recommends gcc g++ libc6-dev
rm -rf /var/lib/apt/lists/*
# torch first, so that no later package installs another build of it. From PyPI it is the build for CUDA; for CPUs set
# PIP_INDEX_URL=https://download.pytorch.org/whl/cpu and PIP_EXTRA_INDEX_URL=https://pypi.org/simple.
pip install --no-cache-dir -c constraints.txt torch
# PIP_CONSTRAINT also holds for the packages that build the wheel, as -c does not.
PIP_CONSTRAINT=constraints.txt pip install --no-cache-dir '.[formats,export]'
fusionseg --version
