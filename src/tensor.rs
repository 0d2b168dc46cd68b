//! Borrowed tensors: data, shape, strides.

use crate::error::{Error, Result};

/// The shape and strides of `[batch, seqlen, heads, head_dim]`, or of `[total, heads, head_dim]` where sequences of
/// different lengths are packed one after the other. Strides count elements; the last is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// `None` for the packed form.
    pub(crate) batch: Option<usize>,
    /// `seqlen`, or `total` in the packed form.
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) batch_stride: usize,
    pub(crate) row_stride: usize,
    pub(crate) head_stride: usize,
}

impl Layout {
    /// Checks a shape and its strides.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are 3 or 4 dimensions, [`Error::Strides`] unless there are as many strides, the
    /// last of them 1, and all offsets fit in 64 bits. `argument` is the name used in the error.
    pub fn new(argument: &'static str, shape: &[usize], strides: &[usize]) -> Result<Self> {
        let (batch, [rows, heads, head_dim]) = match *shape {
            [b, s, h, d] => (Some(b), [s, h, d]),
            [t, h, d] => (None, [t, h, d]),
            _ => {
                return Err(Error::Shape {
                    argument,
                    found: shape.to_vec(),
                    expected: "[batch, seqlen, heads, head_dim] or [total, heads, head_dim]".into(),
                });
            }
        };
        let bad_strides = |expected: &str| Error::Strides {
            argument,
            found: strides.to_vec(),
            expected: expected.into(),
        };
        let (batch_stride, row_stride, head_stride) = match *strides {
            [b, s, h, 1] if batch.is_some() => (b, s, h),
            [s, h, 1] if batch.is_none() => (0, s, h),
            _ => return Err(bad_strides("one stride a dimension, the last of them 1")),
        };
        let layout = Self {
            batch,
            rows,
            heads,
            head_dim,
            batch_stride,
            row_stride,
            head_stride,
        };
        if layout.checked_span().is_none() {
            return Err(bad_strides("offsets below 2^63"));
        }
        Ok(layout)
    }

    /// The layout of a tensor without gaps.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn contiguous(argument: &'static str, shape: &[usize]) -> Result<Self> {
        let mut strides = vec![1usize; shape.len()];
        for i in (1..shape.len()).rev() {
            // A product that overflows is refused by `new`, which multiplies by the same sizes again.
            strides[i - 1] = strides[i].saturating_mul(shape[i]);
        }
        Self::new(argument, shape, &strides)
    }

    /// The layout of a view without gaps: errors name the arguments of a view's constructor.
    pub(crate) fn of_shape(shape: &[usize]) -> Result<Self> {
        Self::contiguous("shape", shape).map_err(|error| match error {
            Error::Strides { expected, .. } => Error::Shape {
                argument: "shape",
                found: shape.to_vec(),
                expected,
            },
            other => other,
        })
    }

    /// Likewise of a view with strides.
    pub(crate) fn of_strides(shape: &[usize], strides: &[usize]) -> Result<Self> {
        Self::new("shape", shape, strides).map_err(|error| match error {
            Error::Strides {
                found, expected, ..
            } => Error::Strides {
                argument: "strides",
                found,
                expected,
            },
            other => other,
        })
    }

    /// The shape.
    pub fn shape(&self) -> Vec<usize> {
        let dims = [self.rows, self.heads, self.head_dim];
        self.batch.into_iter().chain(dims).collect()
    }

    /// The strides, in elements.
    pub fn strides(&self) -> Vec<usize> {
        let strides = [self.row_stride, self.head_stride, 1];
        self.batch
            .map(|_| self.batch_stride)
            .into_iter()
            .chain(strides)
            .collect()
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The number of elements from the first to the last, gaps included: what a buffer must hold.
    pub fn span(&self) -> usize {
        self.checked_span()
            .expect("checked when the layout was made")
    }

    fn dims(&self) -> [(usize, usize); 4] {
        [
            (self.batch.unwrap_or(1), self.batch_stride),
            (self.rows, self.row_stride),
            (self.heads, self.head_stride),
            (self.head_dim, 1),
        ]
    }

    fn checked_span(&self) -> Option<usize> {
        let dims = self.dims();
        // The count of elements must fit too: with a stride of 0 it can exceed the span.
        dims.iter()
            .try_fold(1usize, |product, &(n, _)| product.checked_mul(n.max(1)))?;
        if dims.iter().any(|&(n, _)| n == 0) {
            return Some(0);
        }
        dims.iter()
            .try_fold(1usize, |span, &(n, stride)| {
                span.checked_add((n - 1).checked_mul(stride)?)
            })
            .filter(|&span| i64::try_from(span).is_ok())
    }

    /// Whether no two elements share an address.
    pub(crate) fn is_injective(&self) -> bool {
        self.span() == 0 || step_over(self.dims().to_vec())
    }

    pub(crate) fn check_injective(&self, argument: &'static str) -> Result<()> {
        if !self.is_injective() {
            return Err(Error::Strides {
                argument,
                found: self.strides(),
                expected: "strides that keep the output's elements apart".into(),
            });
        }
        Ok(())
    }

    pub(crate) fn check_buffer(&self, argument: &'static str, len: usize) -> Result<()> {
        if len < self.span() {
            return Err(Error::Length {
                argument,
                found: len,
                expected: format!(
                    "at least {} for shape {:?} and strides {:?}",
                    self.span(),
                    self.shape(),
                    self.strides()
                ),
            });
        }
        Ok(())
    }
}

/// Whether each dimension of these sizes and strides, sorted by stride, steps over the ones within it: then no two elements
/// share an address.
fn step_over(mut dims: Vec<(usize, usize)>) -> bool {
    dims.retain(|&(n, _)| n > 1);
    dims.sort_by_key(|&(_, stride)| stride);
    let mut span = 1;
    dims.iter().all(|&(n, stride)| {
        let steps_over = stride >= span;
        span += (n - 1) * stride;
        steps_over
    })
}

/// A layout that begins somewhere in a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) start: usize,
    pub(crate) layout: Layout,
}

impl Part {
    /// Checks that the part is in a buffer of so many elements, and that no two of its own share an address.
    pub(crate) fn check(&self, argument: &'static str, len: usize) -> Result<()> {
        let len = len.saturating_sub(self.start);
        self.layout.check_buffer(argument, len)?;
        self.layout.check_injective(argument)
    }

    /// Whether two parts of one buffer have no address in common: one ends before the other begins, or both have the same
    /// strides, and so are the two items of a larger layout. `false` where it is not known.
    pub(crate) fn is_apart(&self, other: &Self) -> bool {
        if self.layout.span() == 0 || other.layout.span() == 0 {
            return true;
        }
        let end = |part: &Self| part.start.saturating_add(part.layout.span());
        if end(self) <= other.start || end(other) <= self.start {
            return true;
        }
        let steps = |part: &Self| {
            let dims = part.layout.dims();
            dims.map(|(n, stride)| (n, if n > 1 { stride } else { 0 }))
        };
        let mut dims = self.layout.dims().to_vec();
        dims.push((2, self.start.abs_diff(other.start)));
        steps(self) == steps(other) && step_over(dims)
    }
}

/// A borrowed input tensor.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) layout: Layout,
}

impl<'a, T> View<'a, T> {
    /// A tensor without gaps, of shape `[batch, seqlen, heads, head_dim]` or `[total, heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank, [`Error::Length`] for a buffer that is too short.
    pub fn new(data: &'a [T], shape: &[usize]) -> Result<Self> {
        Self::from_layout(data, Layout::of_shape(shape)?)
    }

    /// A tensor with strides in elements; the last must be 1. A stride of 0 repeats a dimension.
    ///
    /// # Errors
    /// As [`Layout::new`], and [`Error::Length`] for a buffer that is too short.
    pub fn strided(data: &'a [T], shape: &[usize], strides: &[usize]) -> Result<Self> {
        Self::from_layout(data, Layout::of_strides(shape, strides)?)
    }

    fn from_layout(data: &'a [T], layout: Layout) -> Result<Self> {
        layout.check_buffer("data", data.len())?;
        Ok(Self { data, layout })
    }

    /// The elements, from the first on.
    pub fn data(&self) -> &'a [T] {
        self.data
    }

    /// The shape and strides.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// A borrowed output tensor. No two of its elements share an address.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) layout: Layout,
}

impl<'a, T> ViewMut<'a, T> {
    /// A tensor without gaps, of shape `[batch, seqlen, heads, head_dim]` or `[total, heads, head_dim]`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn new(data: &'a mut [T], shape: &[usize]) -> Result<Self> {
        Self::from_layout(data, Layout::of_shape(shape)?)
    }

    /// A tensor with strides in elements; the last must be 1.
    ///
    /// # Errors
    /// As [`View::strided`], and [`Error::Strides`] where two elements would share an address.
    pub fn strided(data: &'a mut [T], shape: &[usize], strides: &[usize]) -> Result<Self> {
        Self::from_layout(data, Layout::of_strides(shape, strides)?)
    }

    fn from_layout(data: &'a mut [T], layout: Layout) -> Result<Self> {
        layout.check_buffer("data", data.len())?;
        layout.check_injective("strides")?;
        Ok(Self { data, layout })
    }

    /// The tensor to read from: what was written can be the input of the next call.
    pub fn view(&self) -> View<'_, T> {
        View {
            data: self.data,
            layout: self.layout,
        }
    }

    /// The shape and strides.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}
