//! ALiBi attention ([Press et al., 2022](https://arxiv.org/abs/2108.12409)) for Rust inference engines, fused, on CPUs and
//! NVIDIA GPUs. Keys that provably cannot change a result are not even read, so with the usual slopes the cost of a token
//! stops growing with the context:
//!
#![doc = include_str!("../docs/cost.svg")]
//!
#![doc = include_str!("../docs/guide.md")]
#![deny(missing_docs)]
// docs.rs has the nightly compiler that shows features.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attention;
mod cache;
#[cfg(feature = "candle")]
pub mod candle;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod horizon;
mod inputs;
// Internals, for the emulator, tests and examples of this workspace: no part of the interface, and free to change.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod kernels;
mod limits;
mod merge;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod plan;
mod problem;
mod sequences;
mod slopes;
mod tensor;

pub use attention::{Attention, AttentionBuilder, MAX_HEAD_DIM, Mask};
pub use cache::{Appended, Batch, PagedCache, SequenceId};
pub use error::{Error, Result};
pub use horizon::Horizon;
pub use inputs::Inputs;
pub use merge::{merge_state, merge_states};
pub use slopes::Slopes;
pub use tensor::{Layout, View, ViewMut};

/// Its examples are tested as the documentation's are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Likewise those for engines.
#[cfg(all(doctest, feature = "candle"))]
#[doc = include_str!("../docs/engines.md")]
struct Engines;
