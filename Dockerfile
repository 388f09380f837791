# The worker as an image: docker build -t longshore:latest .
#
# Both images can be others: --build-arg BUILD_IMAGE=… needs cargo, a C compiler and /etc/ssl/certs/ca-certificates.crt,
# BASE_IMAGE=… glibc 2.36 or later, a shell, stat and setpriv.
ARG BUILD_IMAGE=rust:1-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --bin longshore && mkdir /out && cp target/release/longshore /out/ && strip /out/longshore

FROM ${BASE_IMAGE}
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/longshore /usr/local/bin/longshore
COPY config/container-entrypoint /usr/local/bin/container-entrypoint
ENV LONGSHORE_STATE_DIR=/var/lib/longshore
# Root only until the folders and the engine's socket are the worker's user's, see the entrypoint.
ENTRYPOINT ["container-entrypoint"]
CMD ["worker"]
HEALTHCHECK --interval=30s --timeout=20s --start-period=30s --retries=3 CMD ["container-entrypoint", "doctor", "--quick"]
