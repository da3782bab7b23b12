#!/usr/bin/env bash
# SmolLM2-135M after its extension learns to call functions from made conversations, and
# BFCL's table has it beside the model that was published and the one that was extended.
#
#   scripts/smollm2/calls.sh [--small]
#
# after `make smollm2`. What is there already stays, so that it can be started again.
#   ROOT=runs/smollm2-135m   where `make smollm2` put everything
#   CHECKPOINT=DIR           the extended one (default: the last of ROOT/stages/160k)
#   BFCL=DIR                 bfcl_eval/data, or
#   BFCL_ENV=DIR             an environment with bfcl-eval: all fourteen rows (make venv-bfcl)
#   LIMIT=100                questions of each category
# --small is the same path, cut to what a laptop runs in twenty minutes with BFCL (the
# conversations of BFCL_ENV take longer); its figures mean nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=${ROOT:-runs/smollm2-135m}
CHECKPOINT=${CHECKPOINT:-$(ls -d "$ROOT"/stages/160k/checkpoints/update-* 2>/dev/null | grep -E '[0-9]$' | tail -1 || true)}
python=${PYTHON:-.venv/bin/python}
count=16000 limit=${LIMIT:-100} batch=128 new=256 settings=()
if [[ ${1:-} == --small ]]; then
  count=12 limit=${LIMIT:-1} batch=2 new=16
  settings=(engine.device=cpu engine.precision=fp32 stages.fc.context=1024
    stages.fc.update_instances=5 stages.fc.pack.held_out_instances=2)
fi
alia() {
  echo "\$ alia-ctx $*"
  PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} "$python" -m alia_ctx.cli "$@"
}
[[ -n ${BFCL_ENV:-}${BFCL:-} ]] || { echo "name BFCL=DIR (bfcl_eval/data) or BFCL_ENV=DIR (make venv-bfcl)" >&2; exit 2; }
[[ -d ${CHECKPOINT:-} ]] || { echo "$ROOT holds no checkpoint of the stage 160k; run \`make smollm2\` first, or name CHECKPOINT" >&2; exit 2; }
# Data of --small must not be taken for the whole.
stated="$ROOT/chat/count"
[[ ! -f $stated || $(<"$stated") == "$count" ]] || { echo "$ROOT/chat was made with $(<"$stated") conversations, not $count; name another ROOT" >&2; exit 2; }
run=(configs/runs/smollm2-fc.yaml "root=$ROOT" "stages.fc.init_from=$CHECKPOINT" "${settings[@]}")

mkdir -p "$ROOT/chat"
echo "$count" > "$stated"
[[ -f $ROOT/chat/calls.jsonl.json ]] ||
  alia make-tool-data rich typer numpy transformers invented:4000 \
    --output "$ROOT/chat/calls.jsonl" --count "$count" --seed 1
alia tokenize "${run[@]}"
alia pack "${run[@]}" --stage fc
alia train "${run[@]}" --stage fc | tee "$ROOT/fc-train.txt"
# The best by exact calls, where one was better than none; else the last.
best=$(sed -n 's/^best checkpoint: \(.*\) (update .*$/\1/p' "$ROOT/fc-train.txt")
alia export-hf "${best:-$(tail -1 "$ROOT/fc-train.txt")}" "$ROOT/hf-fc" --overwrite
[[ -d $ROOT/hf-160k ]] || alia export-hf "$CHECKPOINT" "$ROOT/hf-160k"
if [[ -n ${BFCL_ENV:-} ]]; then data=(--bfcl-env "$BFCL_ENV"); else data=(--data "${BFCL:?name BFCL or BFCL_ENV}"); fi
alia evaluate-calls "$ROOT/hf" "$ROOT/hf-160k" "$ROOT/hf-fc" "${data[@]}" --template chatml-tools \
  --limit "$limit" --batch-size "$batch" --max-new-tokens "$new" --output "$ROOT/calls"
