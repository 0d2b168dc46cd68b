//! Numbers on which Rust and the kernels agree: those of `kernels/common/limits.h`.

// Without the feature `cuda`, some are of no use here.
#![cfg_attr(not(feature = "cuda"), allow(dead_code))]

include!(concat!(env!("OUT_DIR"), "/limits.rs"));
