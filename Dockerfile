# syntax=docker/dockerfile:1@sha256:87999aa3d42bdc6bea60565083ee17e86d1f3339802f543c0d03998580f9cb89
# Two images of one static binary each:
#   docker build --target operator -t pinhole/operator .
#   docker build --target agent    -t pinhole/agent .
# One that draws flamegraphs of itself (agent/src/tunnel/PROFILE.md):
#   docker build --target agent    -t pinhole/agent:profile --build-arg PROFILE=profiling --build-arg FEATURES=pinhole-agent/profile .
# The lab makes the same images from the same two cargo flags, without a container engine.

# The digests are those of the multi-platform indexes.
FROM rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
ARG PROFILE=release
ARG FEATURES=
WORKDIR /src
COPY . .
# --target, though it names this very machine, keeps the static flag out of build scripts and macros.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    triple="$(rustc --print host-tuple)" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile "$PROFILE" \
        --target "$triple" --features "$FEATURES" \
        -p pinhole-agent --bin pinhole -p pinhole-operator --bin pinhole-operator \
    && install -D -t /out "target/$triple/$PROFILE/pinhole" "target/$triple/$PROFILE/pinhole-operator"

FROM scratch AS agent
COPY --from=build /out/pinhole /pinhole
USER 65532:65532
ENTRYPOINT ["/pinhole"]

FROM scratch AS operator
COPY --from=build /out/pinhole-operator /pinhole-operator
USER 65532:65532
ENTRYPOINT ["/pinhole-operator"]
