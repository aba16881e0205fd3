# syntax=docker/dockerfile:1
# Two images of one static binary each:
#   docker build --target operator -t pinhole/operator .
#   docker build --target agent    -t pinhole/agent .
# The lab makes the same images from the same two cargo flags, without a container engine.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# --target, though it names this very machine, keeps the static flag out of build scripts and macros.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    triple="$(rustc --print host-tuple)" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$triple" \
        -p pinhole-agent --bin pinhole -p pinhole-operator --bin pinhole-operator \
    && install -D -t /out "target/$triple/release/pinhole" "target/$triple/release/pinhole-operator"

FROM scratch AS agent
COPY --from=build /out/pinhole /pinhole
USER 65532:65532
ENTRYPOINT ["/pinhole"]

FROM scratch AS operator
COPY --from=build /out/pinhole-operator /pinhole-operator
USER 65532:65532
ENTRYPOINT ["/pinhole-operator"]
