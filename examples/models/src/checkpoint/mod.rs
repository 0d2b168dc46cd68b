//! The files of a checkpoint folder: what is read, and what is refused because nobody would read it.

mod files;
mod generation;
mod keys;
mod tensors;

pub use files::{Document, refuse_pointer, require_folder};
pub use generation::end_tokens;
pub use keys::{Fixed, Keys, head_dim};
pub use tensors::Tensors;
