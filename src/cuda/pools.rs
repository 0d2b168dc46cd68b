//! The pools of a paged cache on a device.

use cudarc::driver::CudaStream;

use super::buffer::{Checks, Lent};
use super::{Buffer, BufferMut, Element, Layer, Result, View, ViewMut};
use crate::cpu::check_apart;
use crate::error;
use crate::tensor::{Layout, Part};

/// The pools of a paged cache in device memory, borrowed to be written: one of keys, one of values, each of them
/// `[pages, page_size, heads_k, head_dim]`.
///
/// [`Layer::append`] and [`Layer::copy_pages`] do for pools in buffers of their own; this is for pools in one buffer too. Here
/// every page has its keys and then its values, as in FlashInfer's `[pages, 2, page_size, heads_k, head_dim]`:
///
/// ```no_run
/// use flash_alibi::cuda::{self, Layer, Pools, View};
/// use flash_alibi::{Attention, Layout};
/// use half::f16;
///
/// let stream = cuda::context(0)?.new_stream()?;
/// let (pages, page_size, heads, head_dim) = (512, 16, 8, 128);
/// let layer = Layer::new(&stream, Attention::new(heads, heads, head_dim).build()?)?;
/// let (row, page) = (heads * head_dim, page_size * heads * head_dim);
/// let shape = [pages, page_size, heads, head_dim];
/// let layout = Layout::new("pages", &shape, &[2 * page, row, head_dim, 1])?;
/// let mut kv = stream.alloc_zeros::<f16>(2 * pages * page)?;
///
/// let (new, slots) = (stream.alloc_zeros::<f16>(row)?, stream.clone_htod(&[40i64])?);
/// let x = View::new(&new, &[1, heads, head_dim])?;
/// let mut pools = Pools::of_one_buffer(&mut kv, (0, layout), (page, layout))?;
/// pools.append(&layer, &stream, x, x, &slots)?;              // row 8 of page 2
///
/// // What `Inputs::paged` takes.
/// let values = kv.slice(page..);
/// let k_pages = View::strided(&kv, &shape, &layout.strides())?;
/// let v_pages = View::strided(&values, &shape, &layout.strides())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pools<'a, T> {
    memory: Memory<'a, T>,
    parts: [Part; 2],
}

enum Memory<'a, T> {
    Two([&'a mut dyn BufferMut<T>; 2]),
    One(&'a mut dyn BufferMut<T>),
}

impl<'a, T> Pools<'a, T> {
    /// Pools in buffers of their own, each with strides of its own.
    pub fn new<'k: 'a, 'v: 'a>(k_pages: ViewMut<'k, T>, v_pages: ViewMut<'v, T>) -> Self {
        let parts = [k_pages.layout, v_pages.layout].map(|layout| Part { start: 0, layout });
        let memory = Memory::Two([k_pages.buffer, v_pages.buffer]);
        Self { memory, parts }
    }

    /// Pools that lie in one buffer, such as the halves of `[2, pages, page_size, heads_k, head_dim]` or of
    /// `[pages, 2, page_size, heads_k, head_dim]`: where each begins in the buffer, and its layout from there on.
    ///
    /// # Errors
    /// [`Error`](crate::Error) for layouts that are too large for the buffer, or that may have elements in common. They have
    /// none where one pool ends before the other begins, or where their strides are the same and step over both.
    pub fn of_one_buffer(
        buffer: &'a mut dyn BufferMut<T>,
        (k_start, k_pages): (usize, Layout),
        (v_start, v_pages): (usize, Layout),
    ) -> error::Result<Self> {
        let len = buffer.len();
        // A pool of no elements may begin past the end.
        let part = |start: usize, layout| Part {
            start: start.min(len),
            layout,
        };
        let parts = [part(k_start, k_pages), part(v_start, v_pages)];
        for (argument, part) in ["k_pages", "v_pages"].into_iter().zip(parts) {
            part.check(argument, len)?;
        }
        check_apart(parts)?;
        let memory = Memory::One(buffer);
        Ok(Self { memory, parts })
    }

    /// The layouts of keys and of values.
    pub(super) fn layouts(&self) -> [Layout; 2] {
        self.parts.map(|part| part.layout)
    }

    pub(super) fn check(&self, checks: &Checks<'_>) -> Result<()> {
        match &self.memory {
            Memory::Two([k_pages, v_pages]) => {
                checks.buffer("k_pages", &**k_pages)?;
                checks.buffer("v_pages", &**v_pages)
            }
            Memory::One(buffer) => checks.buffer("k_pages", &**buffer),
        }
    }

    /// Where each pool begins.
    pub(super) fn write<'l>(&'l mut self, lent: &mut Lent<'l>) -> [u64; 2] {
        match &mut self.memory {
            Memory::Two([k_pages, v_pages]) => [
                lent.write("k_pages", &mut **k_pages),
                lent.write("v_pages", &mut **v_pages),
            ],
            Memory::One(buffer) => {
                let address = lent.write("k_pages", &mut **buffer);
                (self.parts).map(|part| address + (part.start * size_of::<T>()) as u64)
            }
        }
    }
}

impl<T: Element> Pools<'_, T> {
    /// Writes the keys and values of new tokens into their slots, as [`Layer::append`] does.
    ///
    /// # Errors
    /// As [`Layer::append`].
    pub fn append(
        &mut self,
        layer: &Layer,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        slot_mapping: &dyn Buffer<i64>,
    ) -> Result<()> {
        layer.check_new(&k)?;
        (layer.kernels).append(stream, k, v, self, slot_mapping, None)
    }

    /// As [`Pools::append`], and also keeps the radii of the pages, as [`Layer::append_with_radii`] does.
    ///
    /// # Errors
    /// As [`Layer::append_with_radii`].
    #[allow(clippy::too_many_arguments)]
    pub fn append_with_radii(
        &mut self,
        layer: &Layer,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        slot_mapping: &dyn Buffer<i64>,
        centres: &dyn Buffer<f32>,
        radii: &mut dyn BufferMut<f32>,
    ) -> Result<()> {
        layer.check_new(&k)?;
        let radii = Some((centres, radii));
        (layer.kernels).append(stream, k, v, self, slot_mapping, radii)
    }

    /// Copies whole pages within both pools, and their radii if there are any, as [`Layer::copy_pages`] does.
    ///
    /// # Errors
    /// As [`Layer::copy_pages`].
    pub fn copy_pages(
        &mut self,
        layer: &Layer,
        stream: &CudaStream,
        copies: &dyn Buffer<i64>,
        radii: Option<&mut dyn BufferMut<f32>>,
    ) -> Result<()> {
        layer.kernels.copy_pages(stream, copies, self, radii)
    }
}
