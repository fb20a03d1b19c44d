#!/usr/bin/env bash
# From a fresh machine with Python >= 3.11 to a trained model of handwritten digits and its samples.
set -euo pipefail

usage() {
  cat <<'END'
bash launch/quickstart.sh [DIR]

Makes .venv, installs, trains configs/digits.py on CPU, evaluates and samples, all in DIR (default
runs/digits). No data is downloaded.
END
}

cd "$(dirname "$0")/.."
source launch/launcher.sh
source launch/environment.sh
run=${1-runs/digits}
case $run in
  --help | -h) usage && exit 0 ;;
  -*) die "unknown option $run; see --help" ;;
  "") die "DIR must not be empty; see --help" ;;
esac
(($# < 2)) || die "unexpected argument $2: DIR is the only one; see --help"
check_paths "$run"
extra=''
if is_bucket "$run"; then extra="[gcs]"; fi
install_environment "$extra"

.venv/bin/python launch/train.py --config=configs/digits.py --workdir="$run"
# At the same time: both mostly compile, each on one core.
.venv/bin/python launch/evaluate.py --workdir="$run" --num_iw_samples=10 &
trap 'kill $! 2>/dev/null || true' EXIT
.venv/bin/python launch/sample.py --workdir="$run" --num=100 --temperature=0.45 --out="$run/samples"
wait $!
trap - EXIT
cat <<EOF

The run is in $run:
  samples              $run/samples/samples.png
  reconstructions      $run/samples/step_*_reconstructions.png
                       (rows of test images, each above the row of its reconstructions)
  evaluation           $run/eval/
  metrics              $run/metrics.jsonl
                       (or: .venv/bin/pip install -e '.[tensorboard]'
                            .venv/bin/tensorboard --logdir $run)
EOF
