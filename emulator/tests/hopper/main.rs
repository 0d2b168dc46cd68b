//! Whole kernels of sm_90a, from C++: tensor copies, mbarriers, warpgroups.

mod attention;
mod bugs;
#[path = "../common/mod.rs"]
mod common;
mod gemm;
