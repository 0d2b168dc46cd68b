//! Decoders of the BLOOM, Falcon and MPT families and encoders of the BERT family on flash-alibi, and what the examples do
//! with them: `generate` and `extrapolate` run a [`Model`], `serve_trace` [serves](serve()) many sequences at once, `embed`
//! runs an [`Encoder`], and `horizon` [measures](measure()) what the horizon leaves out of a [layer](Problem).

mod backend;
mod checkpoint;
mod encoder;
mod generate;
mod layer;
mod measure;
mod model;
mod sampler;
mod serve;
mod tokenizer;
mod weights;

pub use backend::Backend;
pub use encoder::{Encoder, cosines, normalised};
pub use generate::{Generated, generate};
pub use layer::Problem;
pub use measure::{Measured, computed_keys, measure};
pub use model::{Cache, Model, Watch};
pub use sampler::Sampler;
pub use serve::{Report, Request, serve};
pub use tokenizer::{TextStream, Tokenizer};
