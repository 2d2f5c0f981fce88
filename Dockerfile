# ichfast on NVIDIA's PyTorch image, which carries apex and DALI.
#   docker build -t ichfast .
#   docker run --gpus all --ipc=host --ulimit memlock=-1 \
#     -v /data/rsna:/data:ro -v $PWD:/work -w /work ichfast prepare /data --labels ...
# Not built yet: no Docker engine was at hand where this was written.
ARG BASE=nvcr.io/nvidia/pytorch:25.10-py3
FROM ${BASE}
COPY . /opt/ichfast
# The image pins torch, torchvision and DALI; its own builds are kept as they are.
RUN python -m pip install --no-cache-dir '/opt/ichfast[decoders]' \
 && python -c "import nvidia.dali, torch, timm, pydicom" \
 && ichfast --version
ENTRYPOINT ["ichfast"]
CMD ["--help"]
