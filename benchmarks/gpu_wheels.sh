#!/usr/bin/env bash
# Fetches, or builds, the pure Python wheels that a machine with torch, torchvision, timm and einops still lacks:
#   benchmarks/gpu_wheels.sh FOLDER
# There: python -m pip install --no-index --no-deps --target SITE FOLDER/*.whl, and SITE in PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?name the folder for the wheels}
python=${PYTHON:-python3}
names=(fvcore iopath yacs portalocker tabulate termcolor)
"$python" -m pip --disable-pip-version-check wheel --no-deps --wheel-dir "$folder" --constraint constraints.txt \
  "${names[@]}"
for name in "${names[@]}"; do
  compgen -G "$folder/$name-*-none-any.whl" > /dev/null || {
    echo "gpu_wheels.sh: there is no pure Python wheel of $name in $folder" >&2
    exit 1
  }
done
du -ch "$folder"/*.whl | tail -1
