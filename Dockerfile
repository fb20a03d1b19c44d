# For hosts with NVIDIA GPUs, a driver for CUDA 12, and the NVIDIA container toolkit:
#
#   docker build --tag nvae_jax .
#   docker run --rm --gpus=all --volume="$PWD/runs:/runs" --volume=nvae_cache:/root/.cache \
#     nvae_jax train --config=mnist --workdir=/runs/mnist --config.data.dir=/runs/data
#
# For TPU hosts (launch/gke.sh): docker build --build-arg=EXTRAS=tpu,tfds --tag nvae_jax:tpu .
FROM python:3.13-slim

# For the C++ kernels, which a run on CPU compiles at its start.
RUN apt-get update \
  && apt-get install --yes --no-install-recommends g++ \
  && rm -rf /var/lib/apt/lists/*

WORKDIR /nvae_jax
COPY . .
ARG EXTRAS=gpu,tfds,lmdb,export
RUN pip install --no-cache-dir --editable ".[$EXTRAS]"

# Lines of the log as they are written. SIGTERM must reach Python, so no shell is between.
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["nvae-jax"]
CMD ["--help"]
