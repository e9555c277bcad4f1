# avfewshot for a processor (default) or for a GPU:
#   docker build -t avfewshot .                        CPU
#   docker build -t avfewshot:cuda --target cuda .     CUDA, run with --gpus all
# Weights and caches live in the volume /cache; clips are mounted where you like:
#   docker run --rm -v "$PWD:/clips:ro" -v avfs:/cache avfewshot zeroshot --label "dog barking" --label rain --backbone tiny /clips
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    AVFS_CACHE=/cache/avfewshot HF_HOME=/cache/huggingface
RUN useradd --create-home avfs && install -d -o avfs /cache
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY avfewshot avfewshot
COPY prompts prompts
COPY data_splits data_splits
VOLUME /cache
WORKDIR /clips

FROM base AS cuda
# The default wheels of torch carry CUDA.
RUN pip install -c /src/constraints.txt "/src[app]"
USER 1000
ENTRYPOINT ["avfs"]
CMD ["--help"]

FROM base AS cpu
# An index with torch's wheels for processors alone saves about 5 GB; without the argument the default wheels are taken.
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install -c /src/constraints.txt --index-url "$TORCH_INDEX" torch torchvision torchaudio; \
    fi && pip install -c /src/constraints.txt "/src[app]"
USER 1000
ENTRYPOINT ["avfs"]
CMD ["--help"]
