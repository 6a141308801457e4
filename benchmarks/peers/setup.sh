#!/usr/bin/env bash
# Installs the peers of benchmarks.compare into their own virtual environment.
# bash benchmarks/peers/setup.sh [FOLDER]      (default: benchmarks/peers/venv)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-$here/venv}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --requirement "$here/requirements.txt"
"$folder/bin/python" -c 'import torch, trl; print("ready:", "torch", torch.__version__, "trl", trl.__version__)'
