//! Decoders of the BLOOM and MPT families on flash-alibi, and what the examples do with them: `generate` and `extrapolate` run a
//! [`Model`], `serve_trace` [serves](serve()) many sequences at once, and `horizon` [measures](measure()) what the horizon leaves
//! out of a [layer](Problem).

mod layer;
mod measure;
mod model;
mod serve;

pub use layer::Problem;
pub use measure::{Measured, computed_keys, measure};
pub use model::{Backend, Cache, Model, Tokenizer, Watch};
pub use serve::{Report, Request, serve};
