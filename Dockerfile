# docker build -t veneer .                          for CPUs
# docker build -t veneer --build-arg DEVICE=cuda .  for NVIDIA's GPUs from A100 on; where there is none, it runs on the CPU
ARG DEVICE=cpu
# A toolkit of CUDA 12, for drivers from 535 on (for GPUs newer than Hopper from 570 on); of 12.8 at least, since what is older
# compiles attention for H100 to something slow.
ARG CUDA=12.8.1

FROM rust:1.95-slim-bookworm AS rust

FROM rust AS build-cpu
ENV FEATURES=""

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build-cuda
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV FEATURES="cuda" CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH

FROM build-${DEVICE} AS build
WORKDIR /build
# Dependencies first, over an empty crate: a layer that lasts until Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
COPY src/kernels/cuda/build.rs src/kernels/cuda/
RUN mkdir benches && sed -n '/^\[\[bench\]\]/{n;s|name = "\(.*\)"|benches/\1.rs|p}' Cargo.toml | xargs touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --features "${FEATURES}"
COPY config config
COPY src src
# Function names stay for backtraces, line tables go: they are most of the file.
RUN touch src/lib.rs src/main.rs src/kernels/cuda/build.rs \
    && cargo build --release --locked --features "${FEATURES}" \
    && strip --strip-debug target/release/veneer

FROM debian:bookworm-slim AS run-cpu

# With cuBLASLt, which is opened when a GPU is.
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04 AS run-cuda

FROM run-${DEVICE}
LABEL org.opencontainers.image.title="veneer" \
    org.opencontainers.image.description="Sentence embeddings with any number of PEFT adapters, chosen per request" \
    org.opencontainers.image.licenses="Apache-2.0"
# Models, the Hub's cache and the driver's; nothing is written anywhere else. TLS roots are compiled in.
RUN install -d -o 10001 -g 10001 /data
COPY --from=build /build/target/release/veneer /usr/local/bin/veneer
# The driver compiles for GPUs newer than Hopper once, and keeps it there.
ENV HF_HOME=/data/huggingface CUDA_CACHE_PATH=/data/cuda VENEER_SERVER__HOST=0.0.0.0
WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# A first start may have a model to download.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD ["veneer", "health"]
ENTRYPOINT ["veneer"]
CMD ["serve"]
