//! Borrowed tensors on a device.

use cudarc::driver::DeviceRepr;
use half::{bf16, f16};

use super::{Buffer, BufferMut};
use crate::error::Result;
use crate::plan::Dtype;
use crate::tensor::Layout;

/// An element type of queries that kernels take: [`half::f16`] and [`half::bf16`].
pub trait Element: DeviceRepr + Copy + Send + Sync + sealed::Sealed + 'static {
    /// Its name in plans.
    #[doc(hidden)]
    const DTYPE: Dtype;
}

/// An element type of keys and values that kernels take beside queries of type `Q`: today `Q` itself.
pub trait CacheElement<Q>: DeviceRepr + Copy + Send + Sync + sealed::Sealed + 'static {}

impl<T: Element> CacheElement<T> for T {}

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

/// A borrowed input tensor: a [`Buffer`] with a shape and strides.
///
/// A tensor that does not begin where its buffer does is one in a part of it: `View::new(&buffer.slice(offset..), ...)`.
/// Buffers aligned to 16 bytes, with strides of multiples of 8 elements, are read fastest.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    pub(super) buffer: &'a dyn Buffer<T>,
    pub(super) layout: Layout,
}

impl<'a, T> View<'a, T> {
    /// A tensor without gaps, of shape `[batch, seqlen, heads, head_dim]` or `[total, heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another rank, [`Error::Length`](crate::Error::Length) for a buffer that is
    /// too short.
    pub fn new(buffer: &'a dyn Buffer<T>, shape: &[usize]) -> Result<Self> {
        Self::from_layout("buffer", buffer, Layout::of_shape(shape)?)
    }

    /// A tensor with strides in elements; the last must be 1. A stride of 0 repeats a dimension.
    ///
    /// # Errors
    /// As [`Layout::new`], and [`Error::Length`](crate::Error::Length) for a buffer that is too short.
    pub fn strided(buffer: &'a dyn Buffer<T>, shape: &[usize], strides: &[usize]) -> Result<Self> {
        Self::from_layout("buffer", buffer, Layout::of_strides(shape, strides)?)
    }

    pub(crate) fn from_layout(
        argument: &'static str,
        buffer: &'a dyn Buffer<T>,
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

/// A borrowed output tensor: a [`BufferMut`] with a shape and strides. No two of its elements share an address.
pub struct ViewMut<'a, T> {
    pub(super) buffer: &'a mut dyn BufferMut<T>,
    pub(super) layout: Layout,
}

impl<'a, T> ViewMut<'a, T> {
    /// A tensor without gaps, of shape `[batch, seqlen, heads, head_dim]` or `[total, heads, head_dim]`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn new(buffer: &'a mut dyn BufferMut<T>, shape: &[usize]) -> Result<Self> {
        Self::from_layout(["buffer", "strides"], buffer, Layout::of_shape(shape)?)
    }

    /// A tensor with strides in elements; the last must be 1.
    ///
    /// # Errors
    /// As [`View::strided`], and [`Error::Strides`](crate::Error::Strides) where two elements would share an address.
    pub fn strided(
        buffer: &'a mut dyn BufferMut<T>,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self> {
        let layout = Layout::of_strides(shape, strides)?;
        Self::from_layout(["buffer", "strides"], buffer, layout)
    }

    /// The names are of what is too short, and of what overlaps.
    pub(crate) fn from_layout(
        [buffer_name, strides_name]: [&'static str; 2],
        buffer: &'a mut dyn BufferMut<T>,
        layout: Layout,
    ) -> Result<Self> {
        layout.check_buffer(buffer_name, buffer.len())?;
        layout.check_injective(strides_name)?;
        Ok(Self { buffer, layout })
    }

    /// The tensor to read from: what was written can be the input of the next call.
    pub fn view(&self) -> View<'_, T> {
        View {
            buffer: &*self.buffer,
            layout: self.layout,
        }
    }

    /// The same tensor, lent for less long.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut {
            buffer: &mut *self.buffer,
            layout: self.layout,
        }
    }

    /// The shape and strides.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}
