//! What can be wrong with a call, named so that the caller can mend it.

/// A bad argument: which one, what was found, and what was expected.
///
/// Every error is found before anything is computed: when a function returns an error, no output was written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor whose shape does not fit the others or the layer.
    #[error("{argument}: found shape {found:?}, expected {expected}")]
    Shape {
        /// The argument's name.
        argument: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that would fit.
        expected: String,
    },
    /// Strides that leave the last dimension non-contiguous, overflow, or make an output overlap itself.
    #[error("{argument}: found strides {found:?}, expected {expected}")]
    Strides {
        /// The argument's name.
        argument: &'static str,
        /// Its strides, in elements.
        found: Vec<usize>,
        /// The strides that would fit.
        expected: String,
    },
    /// A buffer or an array of the wrong length.
    #[error("{argument}: found {found} elements, expected {expected}")]
    Length {
        /// The argument's name.
        argument: &'static str,
        /// Its length, in elements.
        found: usize,
        /// The length that would fit.
        expected: String,
    },
    /// A paged cache without the free pages that a call takes. The call changed nothing; it succeeds once enough pages
    /// have been freed.
    #[error("cache: found {free} free pages, expected at least {needed}")]
    CacheFull {
        /// How many pages are free.
        free: usize,
        /// How many the call takes.
        needed: usize,
    },
    /// A number out of its range.
    #[error("{argument}: found {found}, expected {expected}")]
    Value {
        /// The argument's name.
        argument: &'static str,
        /// The value, printed.
        found: String,
        /// The values that would fit.
        expected: String,
    },
}

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn value(
    argument: &'static str,
    found: impl ToString,
    expected: impl Into<String>,
) -> Error {
    Error::Value {
        argument,
        found: found.to_string(),
        expected: expected.into(),
    }
}
