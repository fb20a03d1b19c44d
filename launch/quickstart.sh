#!/usr/bin/env bash
# From a fresh machine with Python >= 3.11 to a trained model of handwritten digits and its samples:
# makes .venv, installs, trains configs/digits.py on CPU, evaluates and samples. No download of data.
#
#   bash launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_environment ""

run="${1:-runs/digits}"
.venv/bin/python launch/train.py --config=configs/digits.py --workdir="$run"
.venv/bin/python launch/evaluate.py --workdir="$run" --num_iw_samples=10
.venv/bin/python launch/sample.py --workdir="$run" --num=100 --temperature=0.8 --out="$run/samples"
cat <<EOF

The run is in $run:
  samples              $run/samples/samples.png
  reconstructions      $run/samples/step_*_reconstructions.png
                       (rows of test images, each above the row of its reconstructions)
  evaluation           $run/eval/
  metrics              $run/metrics.jsonl   (or: tensorboard --logdir $run)
EOF
