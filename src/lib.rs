#![doc = include_str!("../README.md")]
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
