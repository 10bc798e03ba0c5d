# For the CPU:    docker build -t zo_kernels .
# With CUDA:      docker build -t zo_kernels:cuda --build-arg CUDA=1 .
# Another torch:  --build-arg TORCH_INDEX=URL takes torch from there, such as from an index of builds without CUDA.
# A run:          docker run --rm -v "$PWD/runs:/home/runs" zo_kernels zo-train --out runs/copy
ARG CUDA=0
ARG CUDA_IMAGE=nvidia/cuda:13.0.0-devel-ubuntu24.04

FROM ubuntu:24.04 AS base-0
FROM ${CUDA_IMAGE} AS base-1

FROM base-${CUDA}
ARG CUDA
ARG TORCH_INDEX
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1
RUN apt-get update \
  && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
  && rm -rf /var/lib/apt/lists/* \
  && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY . /tmp/zo_kernels
RUN if [ -n "$TORCH_INDEX" ]; then pip install 'torch>=2.8' --index-url "$TORCH_INDEX"; fi \
  && ZO_KERNELS_CUDA=$CUDA pip install /tmp/zo_kernels \
  && rm -rf /tmp/zo_kernels
WORKDIR /home
CMD ["python", "-m", "zo_kernels"]
