//! Borrowed tensors on a device.

use cudarc::driver::{DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice};
use half::{bf16, f16};

use crate::error::Result;
use crate::plan::Dtype;
use crate::sequences::{Array, Radii, Sequences};
use crate::tensor::Layout;

/// An element type that kernels take: [`half::f16`] and [`half::bf16`].
pub trait Element: DeviceRepr + Copy + Send + Sync + sealed::Sealed + 'static {
    /// Its name in plans.
    const DTYPE: Dtype;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

/// A borrowed input tensor: a `CudaSlice`, a `CudaView`, or another buffer that cudarc can read, with a shape and strides.
///
/// A tensor that does not begin where its buffer does is one in a part of it: `View::new(&buffer.slice(offset..), ...)`.
/// Buffers aligned to 16 bytes, with strides of multiples of 8 elements, are read fastest.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    pub(super) buffer: &'a dyn DevicePtr<T>,
    pub(super) layout: Layout,
}

impl<'a, T> View<'a, T> {
    /// A tensor without gaps, of shape `[batch, seqlen, heads, head_dim]` or `[total, heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another rank, [`Error::Length`](crate::Error::Length) for a buffer that is
    /// too short.
    pub fn new(buffer: &'a dyn DevicePtr<T>, shape: &[usize]) -> Result<Self> {
        Self::from_layout("tensor", buffer, Layout::contiguous("tensor", shape)?)
    }

    /// A tensor with strides in elements; the last must be 1. A stride of 0 repeats a dimension.
    ///
    /// # Errors
    /// As [`Layout::new`], and [`Error::Length`](crate::Error::Length) for a buffer that is too short.
    pub fn strided(
        buffer: &'a dyn DevicePtr<T>,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self> {
        Self::from_layout("tensor", buffer, Layout::new("tensor", shape, strides)?)
    }

    pub(crate) fn from_layout(
        argument: &'static str,
        buffer: &'a dyn DevicePtr<T>,
        layout: Layout,
    ) -> Result<Self> {
        layout.check_buffer(argument, buffer.len())?;
        Ok(Self { buffer, layout })
    }

    /// The shape and strides.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// A borrowed output tensor: a `CudaSlice`, a `CudaViewMut`, or another buffer that cudarc can write, with a shape and
/// strides. No two of its elements share an address.
pub struct ViewMut<'a, T> {
    pub(super) buffer: &'a mut dyn DevicePtrMut<T>,
    pub(super) layout: Layout,
}

impl<'a, T> ViewMut<'a, T> {
    /// A tensor without gaps, of shape `[batch, seqlen, heads, head_dim]` or `[total, heads, head_dim]`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn new(buffer: &'a mut dyn DevicePtrMut<T>, shape: &[usize]) -> Result<Self> {
        Self::from_layout("out", buffer, Layout::contiguous("out", shape)?)
    }

    /// A tensor with strides in elements; the last must be 1.
    ///
    /// # Errors
    /// As [`View::strided`], and [`Error::Strides`](crate::Error::Strides) where two elements would share an address.
    pub fn strided(
        buffer: &'a mut dyn DevicePtrMut<T>,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self> {
        Self::from_layout("out", buffer, Layout::new("out", shape, strides)?)
    }

    pub(crate) fn from_layout(
        argument: &'static str,
        buffer: &'a mut dyn DevicePtrMut<T>,
        layout: Layout,
    ) -> Result<Self> {
        layout.check_buffer(argument, buffer.len())?;
        layout.check_injective(argument)?;
        Ok(Self { buffer, layout })
    }

    /// The shape and strides.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// The inputs of one call, as [`crate::Inputs`], on a device.
///
/// Lengths lie on the device too, where they cannot be checked before a launch: what exceeds the tensors there is cut off,
/// so that no access leaves them.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    pub(super) q: View<'a, T>,
    pub(super) k: View<'a, T>,
    pub(super) v: View<'a, T>,
    pub(super) sequences: Sequences<&'a dyn DevicePtr<i32>, &'a dyn DevicePtr<f32>>,
}

impl<T> Array for &dyn DevicePtr<T> {
    fn len(&self) -> usize {
        DeviceSlice::len(*self)
    }
}

impl<'a, T> Inputs<'a, T> {
    /// Dense inputs: q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`. Every sequence
    /// has all rows of its tensors.
    pub fn new(q: View<'a, T>, k: View<'a, T>, v: View<'a, T>) -> Self {
        Self {
            q,
            k,
            v,
            sequences: Sequences::default(),
        }
    }

    /// A paged cache: key `j` of sequence `b` is row `j % page_size` of page `block_table[b][j / page_size]` of the pools k
    /// and v, both `[pages, page_size, heads_k, head_dim]`, as [`crate::Inputs::paged`].
    ///
    /// `page_size` is a multiple of 8; `block_table` is `[batch, max_pages_per_sequence]` without gaps; `seqused_k` is
    /// `[batch]`, the keys that each sequence has. q is `[batch, seqlen_q, heads_q, head_dim]`, or packed by
    /// [`Inputs::varlen_q`]. Pages that do not exist are cut off to those that do.
    pub fn paged(
        q: View<'a, T>,
        k: View<'a, T>,
        v: View<'a, T>,
        block_table: &'a dyn DevicePtr<i32>,
        seqused_k: &'a dyn DevicePtr<i32>,
    ) -> Self {
        let mut inputs = Self::new(q, k, v).seqused_k(seqused_k);
        inputs.sequences.block_table = Some(block_table);
        inputs
    }

    /// Packed queries of a paged cache: q is `[total_q, heads_q, head_dim]`, and sequence `b` has its rows
    /// `cu_seqlens_q[b]..cu_seqlens_q[b + 1]`, at most `max_seqlen_q`, as in [`Inputs::varlen`].
    pub fn varlen_q(mut self, cu_seqlens_q: &'a dyn DevicePtr<i32>, max_seqlen_q: usize) -> Self {
        self.sequences.cu_seqlens_q = Some(cu_seqlens_q);
        self.sequences.max_seqlen_q = max_seqlen_q;
        self
    }

    /// No sequence of a paged cache has more keys. Without it, all that its pages in `block_table` hold: as many as that
    /// decide how keys are split over the device.
    pub fn max_seqlen_k(mut self, max_seqlen_k: usize) -> Self {
        self.sequences.max_seqlen_k = max_seqlen_k;
        self
    }

    /// Packed sequences: q `[total_q, heads_q, head_dim]`, k and v `[total_k, heads_k, head_dim]`, where sequence `b` has the
    /// query rows `cu_seqlens_q[b]..cu_seqlens_q[b + 1]` and likewise the key rows.
    ///
    /// Both arrays hold `batch + 1` non-decreasing row indices starting at 0; rows past the last belong to no sequence and
    /// are neither read nor written. `max_seqlen_q` and `max_seqlen_k` are at least the rows of the longest sequence; rows
    /// of a sequence beyond them are neither read nor written.
    pub fn varlen(
        mut self,
        cu_seqlens_q: &'a dyn DevicePtr<i32>,
        cu_seqlens_k: &'a dyn DevicePtr<i32>,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> Self {
        self.sequences.cu_seqlens_k = Some(cu_seqlens_k);
        self.sequences.max_seqlen_k = max_seqlen_k;
        self.varlen_q(cu_seqlens_q, max_seqlen_q)
    }

    /// Sequence `b` has only its first `seqused_k[b]` key rows: a padded batch, or a cache that is not yet full. The last
    /// query then stands at key position `seqused_k[b] - 1`. `[batch]`.
    pub fn seqused_k(mut self, seqused_k: &'a dyn DevicePtr<i32>) -> Self {
        self.sequences.seqused_k = Some(seqused_k);
        self
    }

    /// The first `leftpad_k[b]` key rows of sequence `b` are padding that no query sees. `[batch]`.
    pub fn leftpad_k(mut self, leftpad_k: &'a dyn DevicePtr<i32>) -> Self {
        self.sequences.leftpad_k = Some(leftpad_k);
        self
    }

    /// How far the keys of a paged cache are from a centre, as
    /// [`Kernels::append_with_radii`](super::Kernels::append_with_radii) keeps it: by it, pages that the
    /// [`Horizon`](crate::Horizon) leaves out are not even read.
    ///
    /// `centres` is `[heads_k, head_dim]`, `radii` `[pages, heads_k]`: at least the distance of each key of a page from the
    /// head's centre. Radii of pages that no query needs may be anything; those of NaN keep their pages.
    pub fn radii(mut self, centres: &'a dyn DevicePtr<f32>, radii: &'a dyn DevicePtr<f32>) -> Self {
        self.sequences.radii = Some(Radii { centres, radii });
        self
    }
}
