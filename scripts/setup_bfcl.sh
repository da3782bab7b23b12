#!/usr/bin/env bash
# An environment of bfcl-eval, for what is compared with it and for its multi-turn categories.
#
# Its own requirements bring a deep-learning stack for memory of vectors, which neither
# needs: so it is installed without them, and what its modules import by name.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${ALIA_PYTHON:-.venv/bin/python}
env=${BFCL_VENV:-.venv-bfcl}
bfcl=2026.3.23
"$python" -m venv --clear --without-pip "$env"
install() { .venv/bin/python -m pip --python "$env/bin/python" install -q --disable-pip-version-check "$@"; }
install --no-deps "bfcl-eval==$bfcl"
# numpy, tree-sitter and the clients as bfcl-eval pins them; pandas is the last that fits this
# numpy; soundfile is what qwen-agent forgets to ask for.
install numpy==1.26.4 pandas==2.2.3 filelock==3.20.0 tqdm requests "pydantic>=2.8.2" \
  python-dotenv "tenacity>=8.5.0" tree_sitter==0.21.3 tree-sitter-java==0.21.0 \
  tree-sitter-javascript==0.21.4 "openai>=1.86.0" mistralai==1.7.0 "anthropic>=0.75.0" \
  cohere==5.18.0 "typer>=0.12.5" "tabulate>=0.9.0" datamodel-code-generator==0.25.7 \
  "google-genai>=1.52.0" qwen-agent soundfile mpmath==1.3.0 "writer-sdk>=2.1.0" overrides \
  boto3 beautifulsoup4 html2text rank_bm25==0.2.2 google-search-results networkx==3.3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
BFCL_PROJECT_ROOT=$scratch "$env/bin/python" -c "import bfcl_eval.eval_checker.eval_runner"
echo "bfcl-eval $bfcl in $env"
