#!/usr/bin/env bash
# Trains with the configuration that is found here: ./train.sh, ENV=portraits ./train.sh, ./train.sh max_train_steps=100
here="$(dirname "$0")"
for venv in "$VENV_PATH" "$VIRTUAL_ENV" "$here/.venv" "$here/venv"; do
  if [ -n "$venv" ] && [ -x "$venv/bin/simpletuner" ]; then
    PATH="$venv/bin:$PATH"
    break
  fi
done
[ -z "$ACCELERATE_EXTRA_ARGS" ] || echo "notice: ACCELERATE_EXTRA_ARGS has no effect yet: one process trains" >&2
command -v simpletuner >/dev/null || { echo "error: simpletuner is not installed. fix: pip install -e '.[cuda]'" >&2; exit 2; }
exec simpletuner train "$@"
