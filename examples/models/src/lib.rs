//! Decoders of the BLOOM, Falcon and MPT families on flash-alibi, and what the examples do with them: `generate` and
//! `extrapolate` run a [`Model`], `serve_trace` [serves](serve()) many sequences at once, and `horizon` [measures](measure())
//! what the horizon leaves out of a [layer](Problem).

mod generate;
mod layer;
mod measure;
mod model;
mod sampler;
mod serve;

pub use generate::{Generated, generate};
pub use layer::Problem;
pub use measure::{Measured, computed_keys, measure};
pub use model::{Backend, Cache, Model, TextStream, Tokenizer, Watch};
pub use sampler::Sampler;
pub use serve::{Report, Request, serve};
