#!/bin/sh
# Everything for one config: prepare, export, train pythae's models, judge. README.md beside this file.
#
#   benchmarks/peers/run.sh configs/digits.yaml [key=value …]
#
# PYTHON is the project's interpreter, PEERS the peers' environment (made when missing), OUT the folder in between,
# EXPORT further options of export.py, e.g. EXPORT="--keep last --seeds 0,1".
set -eu
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
config=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
peers=${PEERS:-.venv-peers}
out=${OUT:-runs/peers/$(basename "$config" .yaml)}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if [ ! -x "$peers/bin/python" ]; then
  "$python" -m venv "$peers"
  echo '*' > "$peers/.gitignore"
fi
"$peers/bin/pip" install --quiet --disable-pip-version-check -c requirements.lock -r benchmarks/peers/requirements.txt

"$python" -m pipeline.prepare --config "$config" "$@"
# shellcheck disable=SC2086
"$python" benchmarks/peers/export.py "$out" --config "$config" ${EXPORT:-} "$@"
PYTHONPATH=. "$peers/bin/python" benchmarks/peers/check_losses.py
PYTHONPATH=. "$peers/bin/python" benchmarks/peers/train_pythae.py "$out"
"$python" benchmarks/peers/judge.py "$out" --config "$config" "$@"
