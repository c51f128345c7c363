#!/bin/sh
# A compiler for Cargo's RUSTC_WORKSPACE_WRAPPER: rustc with the configuration of the model checker.
exec "$@" --cfg hydrant_loom
