# docker build -t veneer .
#
# The crate has no CUDA feature yet: the default, a CPU build, is the only one. A build with features would take
#   --build-arg FEATURES=... --build-arg BUILD=(Rust and what the features need) --build-arg RUNTIME=(their libraries)
ARG BUILD=rust:1.95-slim-bookworm
ARG RUNTIME=debian:bookworm-slim

FROM ${BUILD} AS build
ARG FEATURES=""
WORKDIR /build
# Dependencies first, over an empty crate: a layer that lasts until Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --features "${FEATURES}"
COPY config config
COPY src src
# Function names stay for backtraces, line tables go: they are most of the file.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --features "${FEATURES}" \
    && strip --strip-debug target/release/veneer

FROM ${RUNTIME}
LABEL org.opencontainers.image.title="veneer" \
    org.opencontainers.image.description="Sentence embeddings with any number of PEFT adapters, chosen per request" \
    org.opencontainers.image.licenses="Apache-2.0"
# Models and the Hub's cache; nothing is written anywhere else. TLS roots are compiled in.
RUN install -d -o 10001 -g 10001 /data
COPY --from=build /build/target/release/veneer /usr/local/bin/veneer
ENV HF_HOME=/data/huggingface VENEER_SERVER__HOST=0.0.0.0
WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# A first start may have a model to download.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD ["veneer", "health"]
ENTRYPOINT ["veneer"]
CMD ["serve"]
