//! The race detector against every pair of accesses, in every order.

mod blocks;
#[path = "../common/mod.rs"]
mod common;
mod program;
mod warps;
