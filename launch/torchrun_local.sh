#!/usr/bin/env bash
# Train one stage on this machine, with torchrun: one rank per GPU, or gloo ranks on the processor where there is none.
#
#   launch/torchrun_local.sh RANKS CONFIG STAGE [key=value ...]
#   launch/torchrun_local.sh 2 configs/tiny.yaml base
#
# Run it from the root of the repository; PYTHON chooses the interpreter (default .venv/bin/python). Ctrl-C stops all
# ranks; the same command goes on from the last checkpoint. `alia-ctx run CONFIG` does this for every stage.

set -euo pipefail

if [[ $# -lt 3 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/torchrun_local.sh RANKS CONFIG STAGE [key=value ...]" >&2
    exit 2
fi
readonly ranks=$1 config=$2 stage=$3
shift 3

python=${PYTHON:-.venv/bin/python}
if ! command -v "$python" >/dev/null; then
    echo "torchrun_local: no Python at $python; run \`make setup\` or set PYTHON" >&2
    exit 2
fi
"$python" -m alia_ctx.cli check "$config" --stage "$stage" "$@"

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}
# torchrun alone would end by a warning and leave its ranks behind, and kill those that save for longer than 30 s.
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-86400}
exec "$python" -m torch.distributed.run --standalone --nproc-per-node="$ranks" \
    -m alia_ctx.cli train "$config" --stage "$stage" "$@"
