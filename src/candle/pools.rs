//! The pools of a paged cache: how they lie in their tensors, and locked for writing.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use half::{bf16, f16};

use super::error::bad_shape;
use super::memory::{Pool, address, elsewhere, layout, lend};
use crate::cpu::{Memory, check_apart, split_x};
use crate::error::Error;
use crate::sequences::check_page_size;
use crate::tensor::{Layout, Part};

/// How the pools of a call lie in their memory.
pub(super) struct Pools {
    /// Its shape is `[pages, page_size, heads_k, head_dim]`.
    pub(super) pages: Layout,
    /// That of keys, and that of values.
    pub(super) parts: [Part; 2],
}

impl Pools {
    /// Checks that two tensors are the pools of one cache, which can be written at once.
    pub(super) fn new(k_pages: &Tensor, v_pages: &Tensor) -> std::result::Result<Self, Error> {
        let pools = match is_split(k_pages) {
            true => Self::split(k_pages, v_pages)?,
            false => Self::whole(k_pages, v_pages)?,
        };
        check_page_size(pools.pages.rows)?;
        for (argument, part) in ["k_pages", "v_pages"].into_iter().zip(pools.parts) {
            part.layout.check_injective(argument)?;
        }
        if share_memory([k_pages, v_pages]) {
            check_apart(pools.parts)?;
        }
        Ok(pools)
    }

    fn whole(k_pages: &Tensor, v_pages: &Tensor) -> std::result::Result<Self, Error> {
        if k_pages.rank() != 4 {
            let expected = "[pages, page_size, heads_k, head_dim]";
            return Err(bad_shape("k_pages", k_pages, expected.into()));
        }
        if v_pages.dims() != k_pages.dims() {
            let expected = format!("{:?}, as k_pages", k_pages.dims());
            return Err(bad_shape("v_pages", v_pages, expected));
        }
        let part = |argument, pool: &Tensor| {
            let start = pool.layout().start_offset();
            let layout = layout(argument, pool.layout())?;
            Ok(Part { start, layout })
        };
        let parts = [part("k_pages", k_pages)?, part("v_pages", v_pages)?];
        Ok(Self {
            pages: parts[0].layout,
            parts,
        })
    }

    fn split(k_pages: &Tensor, v_pages: &Tensor) -> std::result::Result<Self, Error> {
        let pages = Layout::contiguous("k_pages", &split_shape(k_pages, v_pages)?)?;
        let place = |argument, pool: &Tensor| {
            let at = pool.layout();
            let page = Shape::from(&at.dims()[1..]);
            match page.is_contiguous(&at.stride()[1..]) {
                true => Ok((at.start_offset(), at.stride()[0])),
                false => Err(Error::Strides {
                    argument,
                    found: at.stride().to_vec(),
                    expected: "those of pages without gaps".into(),
                }),
            }
        };
        let places = [place("k_pages", k_pages)?, place("v_pages", v_pages)?];
        let parts = split_x(pages, places, element_bytes(k_pages))?;
        Ok(Self { pages, parts })
    }
}

#[cfg(feature = "candle-cuda")]
impl Pools {
    /// Whether heads are cut into pieces.
    pub(super) fn is_split(&self) -> bool {
        self.parts[1].layout.heads != self.pages.heads
    }

    /// The parts as pages in which only the order of elements may differ.
    pub(super) fn whole_pages(&self) -> std::result::Result<[Part; 2], Error> {
        if !self.is_split() {
            return Ok(self.parts);
        }
        let mut strides = self.pages.strides();
        let part = |argument, Part { start, layout }: Part, strides: &mut Vec<usize>| {
            strides[0] = layout.batch_stride;
            let layout = Layout::new(argument, &self.pages.shape(), strides)?;
            Ok(Part { start, layout })
        };
        let [k, v] = self.parts;
        Ok([
            part("k_pages", k, &mut strides)?,
            part("v_pages", v, &mut strides)?,
        ])
    }
}

/// Whether a pool of keys is in vLLM's first layout, of which heads are cut into pieces.
pub(super) fn is_split(k_pages: &Tensor) -> bool {
    k_pages.rank() == 5
}

/// The shape `[pages, page_size, heads_k, head_dim]` of pools in vLLM's first layout: keys
/// `[pages, heads_k, head_dim / x, page_size, x]`, where `x` elements have 16 bytes, and values
/// `[pages, heads_k, head_dim, page_size]`.
pub(super) fn split_shape(
    k_pages: &Tensor,
    v_pages: &Tensor,
) -> std::result::Result<[usize; 4], Error> {
    let x = 16 / element_bytes(k_pages);
    let (pages, heads_k, pieces, page_size) = match *k_pages.dims() {
        [pages, heads_k, pieces, page_size, piece] if piece == x => {
            (pages, heads_k, pieces, page_size)
        }
        _ => {
            let expected = format!("[pages, heads_k, head_dim / {x}, page_size, {x}]");
            return Err(bad_shape("k_pages", k_pages, expected));
        }
    };
    let head_dim = pieces * x;
    let expected = [pages, heads_k, head_dim, page_size];
    if v_pages.dims() != expected {
        let expected = format!("{expected:?}, as k_pages");
        return Err(bad_shape("v_pages", v_pages, expected));
    }
    Ok([pages, page_size, heads_k, head_dim])
}

/// Of types of less than a byte, which no backend takes, candle says 0.
fn element_bytes(tensor: &Tensor) -> usize {
    tensor.dtype().size_in_bytes().max(1)
}

fn share_memory([k_pages, v_pages]: [&Tensor; 2]) -> bool {
    address(k_pages) == address(v_pages)
}

/// Both pools, locked: in memory of their own, or in one.
pub(super) enum Locked<'l, 'a, 'b> {
    Two(&'l mut Pool<'a>, &'l mut Pool<'b>),
    One(&'l mut Pool<'a>),
}

/// Pools on the CPU, by the type of their elements.
pub(super) enum OnCpu<'l> {
    F32(Memory<'l, f32>),
    F16(Memory<'l, f16>),
    BF16(Memory<'l, bf16>),
}

impl<'l> Locked<'l, '_, '_> {
    pub(super) fn on_cpu(self) -> Result<OnCpu<'l>> {
        use CpuStorage::{BF16, F16, F32};
        use Memory::{One, Two};
        Ok(match self {
            Self::Two(Pool::Cpu(F32(k)), Pool::Cpu(F32(v))) => OnCpu::F32(Two(k, v)),
            Self::Two(Pool::Cpu(F16(k)), Pool::Cpu(F16(v))) => OnCpu::F16(Two(k, v)),
            Self::Two(Pool::Cpu(BF16(k)), Pool::Cpu(BF16(v))) => OnCpu::BF16(Two(k, v)),
            Self::One(Pool::Cpu(F32(kv))) => OnCpu::F32(One(kv)),
            Self::One(Pool::Cpu(F16(kv))) => OnCpu::F16(One(kv)),
            Self::One(Pool::Cpu(BF16(kv))) => OnCpu::BF16(One(kv)),
            _ => return Err(elsewhere()),
        })
    }
}

/// Locks both pools, the keys' first, and the radii. Memory that the pools share is locked once.
pub(super) fn with_pools(
    [k_pages, v_pages]: [&Tensor; 2],
    radii: Option<&Tensor>,
    mut write: impl FnMut(Locked<'_, '_, '_>, Option<&mut Pool<'_>>) -> Result<()>,
) -> Result<()> {
    let mut with_radii = |pools: Locked<'_, '_, '_>| {
        let Some(radii) = radii else {
            return write(pools, None);
        };
        let mut pools = Some(pools);
        lend(radii, |radii| match pools.take() {
            Some(pools) => write(pools, Some(radii)),
            None => Ok(()), // It is lent once.
        })
    };
    // Not while a lock is held: it reads what the lock guards.
    let one = share_memory([k_pages, v_pages]);
    lend(k_pages, |k_pool| match one {
        true => with_radii(Locked::One(k_pool)),
        false => lend(v_pages, |v_pool| with_radii(Locked::Two(k_pool, v_pool))),
    })
}
