//! What the tests, benches and examples of flash-alibi share.
//!
//! A [`Case`] describes an attention problem: which sequences there are and how they lie in the buffers. [`Case::lay_out`]
//! makes the buffers, in which everything that belongs to no sequence is NaN or infinite, and the same sequences
//! [alone](accuracy::Sequence), from which the oracle takes the reference: so a mistake in finding the rows of a sequence
//! shows, though the oracle and the fast path share that code. [`golden`] has problems and results from files.
//!
//! The kernels are run by `emulator`, with the feature `emulator`, and on a GPU by `device`, with the feature `cuda`.

pub mod accuracy;
#[cfg(feature = "cuda")]
pub mod bench;
mod case;
#[cfg(feature = "cuda")]
pub mod device;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod golden;
#[cfg(feature = "emulator")]
pub mod horizon;
mod laid_out;
pub mod matrix;
pub mod paged;
#[cfg(feature = "cuda")]
pub mod problem;
mod random;
pub mod strategy;
mod tensor;

pub use case::{Case, Lengths, Memory, SlopeKind, expect};
pub use laid_out::{LaidOut, Rows, UNTOUCHED, reference};
pub use random::{generator, normal, random, uniform};
pub use tensor::Tensor;
