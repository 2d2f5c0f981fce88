# ichfast on NVIDIA's PyTorch image, which carries torch, DALI and apex.
#   docker build -t ichfast .
#   docker run --gpus all ichfast doctor
#   docker run --gpus all --ipc=host --ulimit memlock=-1 \
#     -v /data/rsna:/data:ro -v $PWD:/work -w /work ichfast prepare /data --labels ...
# Not built yet: no Docker engine was at hand where this was written.
#
# What the image holds was read in the layer history of images that are built on it
# (2026-11): 26.07 has torch 2.13.0a0, CUDA 13.3.1, nvidia-dali-cuda130 2.2.0 and
# NVIDIA's apex; 25.10 has DALI 1.51.2, older than the extra cuda13 takes. It needs
# driver 580 or newer. For another tag, see DALI_VERSION in the output of
#   docker buildx imagetools inspect nvcr.io/nvidia/pytorch:TAG --format '{{json .Image}}'
ARG BASE=nvcr.io/nvidia/pytorch:26.07-py3
FROM ${BASE}
WORKDIR /opt/ichfast
COPY setup.py pyproject.toml README.md LICENSE ./
COPY ichfast ichfast
# PIP_CONSTRAINT names /etc/pip/constraint.txt, which pins the image's own packages. It
# must not pin the setuptools that builds the wheel; it must keep torch and DALI as they
# are. CuPy is left out: it needs NumPy 2, which may be pinned lower. Without it torch
# gathers the slices of --cache device.
RUN PIP_CONSTRAINT= python -m pip wheel --no-cache-dir --no-deps -w /tmp/wheel . \
 && python -m pip install --no-cache-dir "$(ls /tmp/wheel/ichfast-*.whl)[decoders,nifti]" \
 && rm -r /tmp/wheel
# A build has no GPU, so this tests the CPU path; it fails if a package is missing. The
# driver of the host is visible, so the doctor is told not to look for its GPUs.
RUN cd /tmp && CUDA_VISIBLE_DEVICES= ichfast doctor
WORKDIR /workspace
ENTRYPOINT ["ichfast"]
CMD ["doctor"]
