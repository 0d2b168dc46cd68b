//! What a call launches: pure data, made without a device and tested without one.
//!
//! A layer ([`Attention`]), the shapes of a call ([`Call`]) and what matters of a device ([`Device`]) make a [`Plan`]: which
//! kernel, with what grid, block, shared memory and parameters. An [`Executor`] carries it out on addresses that it
//! understands: the driver's, or an emulator's.

mod append;
mod decode;
mod prefill;

use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::horizon::Horizon;
use crate::kernels::{AttentionParams, Embedded, Params as _, TensorStrides};
use crate::sequences::{check_shapes, check_slopes};
use crate::tensor::Layout;

pub use crate::sequences::{Packed, Paged};
pub use append::{Append, AppendAddresses};

/// The element types that the kernels take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// What a plan depends on of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// The most shared memory that a block can have, in bytes, when the kernel asks for it.
    pub shared_bytes_per_block: u32,
    /// The number of multiprocessors.
    pub multiprocessors: u32,
}

/// The tensors of one call, without their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The type of q, k, v and out.
    pub dtype: Dtype,
    /// `[batch, seqlen_q, heads_q, head_dim]`, packed `[total_q, heads_q, head_dim]`.
    pub q: Layout,
    /// `[batch, seqlen_k, heads_k, head_dim]`, packed `[total_k, heads_k, head_dim]`.
    pub k: Layout,
    /// As `k`.
    pub v: Layout,
    /// As `q`; no two elements share an address.
    pub out: Layout,
    /// For packed tensors; `None` for dense ones.
    pub packed: Option<Packed>,
    /// For keys and values in pages, whose tensors are `[pages, page_size, heads_k, head_dim]`.
    pub paged: Option<Paged>,
}

impl Call {
    /// The number of sequences, once q has the form that `packed` says.
    pub fn batch(&self) -> Option<usize> {
        self.packed.map(|packed| packed.batch).or(self.q.batch)
    }
}

/// Where the tensors of a call lie on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The first element of q.
    pub q: u64,
    /// The first element of k.
    pub k: u64,
    /// The first element of v.
    pub v: u64,
    /// The first element of out.
    pub out: u64,
    /// f32, `[batch, heads_q, seqlen_q]` or `[heads_q, total_q]`; 0: not wanted.
    pub lse: u64,
    /// f32, as the layer has them.
    pub slopes: u64,
    /// i32 `[batch + 1]`; 0 for dense tensors.
    pub cu_seqlens_q: u64,
    /// i32 `[batch + 1]`; 0 for dense tensors.
    pub cu_seqlens_k: u64,
    /// i32 `[batch]`; 0: all key rows are in use.
    pub seqused_k: u64,
    /// i32 `[batch]`; 0: no padding.
    pub leftpad_k: u64,
    /// i32 `[batch, columns]`; 0 unless keys are in pages.
    pub block_table: u64,
    /// u64 `[heads_q, 2]`: the tiles of keys that the prefill kernels compute, and all, are added for each head; 0: not
    /// wanted.
    pub report: u64,
    /// f32 `[heads_k, head_dim]`, the centres that the radii are relative to; 0 unless the cache has radii.
    pub centres: u64,
    /// f32 `[pages, heads_k]`: at least the distance of each key of a page from its head's centre.
    pub radii: u64,
    /// [`Plan::workspace_bytes`] of any content, aligned to 16 bytes.
    pub workspace: u64,
}

/// One launch of one kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// The file that has the kernel.
    pub file: &'static Embedded,
    /// The kernel's name.
    pub kernel: &'static str,
    /// The number of blocks.
    pub grid: u32,
    /// The threads of a block.
    pub block: u32,
    /// The dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// Carries out launches.
pub trait Executor {
    /// What can go wrong.
    type Error;

    /// Launches a kernel with the bytes of its only parameter.
    ///
    /// # Errors
    /// What the executor cannot do.
    ///
    /// # Safety
    /// The addresses in `params` are those of buffers as large as the plan's call says, which stay allocated until the
    /// kernel has ended, and nothing else writes what it reads or touches what it writes.
    unsafe fn launch(&self, launch: &Launch, params: &[u8])
    -> std::result::Result<(), Self::Error>;
}

/// What a call launches.
#[derive(Debug, Clone)]
pub struct Plan {
    launches: Vec<Launch>,
    workspace: Workspace,
    params: AttentionParams,
}

/// What lies in a workspace, in bytes and in this order.
#[derive(Debug, Clone, Copy, Default)]
struct Workspace {
    /// The results of parts of the keys, in f32.
    out: u64,
    lse: u64,
    /// The lists of live tiles; 0 where nothing is left out.
    live: u64,
    /// What the horizon knows of keys, where no cache does.
    centres: u64,
    radii: u64,
    order: u64,
}

impl Workspace {
    fn bytes(&self) -> u64 {
        let Self {
            out,
            lse,
            live,
            centres,
            radii,
            order,
        } = self;
        [out, lse, live, centres, radii, order]
            .iter()
            .fold(0, |sum: u64, &&bytes| sum.saturating_add(bytes))
    }
}

/// A call's sizes, checked.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    /// Of the longest sequence.
    seqlen_q: usize,
    seqlen_k: usize,
}

/// Positions are 32-bit, and so are the indices in cu_seqlens.
const MAX_SEQLEN: usize = 1 << 30;
const MAX_ROWS: usize = i32::MAX as usize;

impl Sizes {
    fn of(attention: &Attention, call: &Call) -> Result<Self> {
        let Call {
            q,
            k,
            v,
            out,
            packed,
            paged,
            ..
        } = *call;
        check_shapes(attention, packed.is_some(), paged.is_some(), [q, k, v, out])?;
        let batch = match packed {
            Some(packed) => packed.batch,
            None => q.batch.expect("checked to be dense"),
        };
        check_slopes(attention, batch)?;
        if !out.is_injective() {
            return Err(Error::Strides {
                argument: "out",
                found: out.strides(),
                expected: "strides that keep the output's elements apart".into(),
            });
        }
        let sizes = Self {
            batch,
            seqlen_q: packed.map_or(q.rows, |packed| packed.max_seqlen_q.min(q.rows)),
            seqlen_k: match paged {
                None => packed.map_or(k.rows, |packed| packed.max_seqlen_k.min(k.rows)),
                Some(paged) => paged.seqlen_k(&k)?,
            },
        };
        for (argument, layout, rows) in [("q", q, sizes.seqlen_q), ("k", k, sizes.seqlen_k)] {
            let entries = layout.batch.unwrap_or(0);
            if rows > MAX_SEQLEN || layout.rows > MAX_ROWS || entries > MAX_ROWS {
                return Err(Error::Shape {
                    argument,
                    found: layout.shape(),
                    expected: format!("at most {MAX_SEQLEN} rows a sequence and {MAX_ROWS} in all"),
                });
            }
        }
        Ok(sizes)
    }

    /// At most so many keys of a sequence are seen by any of its queries.
    fn seen(&self, attention: &Attention) -> usize {
        match (attention.window_left(), attention.window_right()) {
            (Some(left), Some(right)) => left
                .saturating_add(right)
                .saturating_add(self.seqlen_q)
                .min(self.seqlen_k),
            _ => self.seqlen_k,
        }
    }
}

impl Paged {
    /// The bound of the lengths.
    fn seqlen_k(&self, k: &Layout) -> Result<usize> {
        let page_size = k.rows;
        if self.columns == 0 || self.columns > MAX_ROWS {
            return Err(value(
                "block_table",
                format!("{} columns", self.columns),
                format!("1 to {MAX_ROWS}"),
            ));
        }
        let pages = k.batch.unwrap_or(0);
        let room = match pages {
            0 => 0,
            _ => self.columns.saturating_mul(page_size),
        };
        Ok(room.min(self.max_seqlen_k))
    }
}

impl Plan {
    /// Plans attention over many queries a sequence: blocks of rows of one head.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Strides`] or [`Error::Value`] for tensors that do not fit the layer, each other or the
    /// kernels' limits (2^30 rows a sequence, 2^31 blocks), and for a device that is too old or too small.
    pub fn prefill(attention: &Attention, call: &Call, device: &Device) -> Result<Self> {
        let sizes = Sizes::of(attention, call)?;
        Ok(Self {
            launches: prefill::launches(attention, call, &sizes, device)?,
            workspace: prefill::workspace(attention, &sizes),
            params: AttentionParams {
                tiles: prefill::tiles(attention, &sizes).unwrap_or(0) as i32,
                ..params(attention, call, &sizes)
            },
        })
    }

    /// The bytes that [`Plan::prefill`] needs for batches and keys a sequence up to these.
    pub fn prefill_workspace_bytes(
        attention: &Attention,
        max_batch: usize,
        max_seqlen_k: usize,
    ) -> u64 {
        let sizes = Sizes {
            batch: max_batch,
            seqlen_q: max_seqlen_k,
            seqlen_k: max_seqlen_k,
        };
        prefill::workspace(attention, &sizes).bytes()
    }

    /// Plans attention over few queries a sequence and many keys: keys and values are read once for all query heads that
    /// share them, by as many blocks as fill the device.
    ///
    /// For the same shapes the plan is the same, whatever the lengths, so that a graph can replay it.
    ///
    /// # Errors
    /// As [`Plan::prefill`].
    pub fn decode(attention: &Attention, call: &Call, device: &Device) -> Result<Self> {
        let sizes = Sizes::of(attention, call)?;
        let splits = decode::splits(attention, &sizes, device);
        Self::decode_with_splits(attention, call, device, splits)
    }

    /// The bytes that [`Plan::decode`] needs at most for batches, queries a sequence and keys a sequence up to these.
    pub fn decode_workspace_bytes(
        attention: &Attention,
        device: &Device,
        max_batch: usize,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> u64 {
        let of = |batch, seqlen_q| {
            let sizes = Sizes {
                batch,
                seqlen_q,
                seqlen_k: max_seqlen_k,
            };
            let splits = decode::splits(attention, &sizes, device);
            let radii = true;
            decode::workspace(attention, &sizes, splits, radii).bytes()
        };
        let batches = 1..=max_batch;
        batches
            .flat_map(|batch| (1..=max_seqlen_q).map(move |seqlen_q| of(batch, seqlen_q)))
            .max()
            .unwrap_or(0)
    }

    /// As [`Plan::decode`], with the keys of every sequence split in so many parts, of blocks of their own.
    ///
    /// # Errors
    /// As [`Plan::decode`], and [`Error::Value`] for no parts at all.
    pub fn decode_with_splits(
        attention: &Attention,
        call: &Call,
        device: &Device,
        splits: usize,
    ) -> Result<Self> {
        let sizes = Sizes::of(attention, call)?;
        let (launches, workspace) = decode::launches(attention, call, &sizes, device, splits)?;
        Ok(Self {
            launches,
            workspace,
            params: AttentionParams {
                splits: splits as i32,
                tiles: decode::tiles(attention, &sizes) as i32,
                ..params(attention, call, &sizes)
            },
        })
    }

    /// The launches, in order.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// The bytes that the plan needs on the device for results of its own. Calls that can run at the same time need one each.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes()
    }

    /// The kernels' parameters for tensors at these addresses.
    pub fn params(&self, addresses: &Addresses) -> AttentionParams {
        // Each part follows the one before; one that is not there has no address.
        let mut end = addresses.workspace;
        let mut part = |bytes: u64| {
            let start = end;
            end += bytes;
            if bytes > 0 { start } else { 0 }
        };
        let Workspace {
            out,
            lse,
            live,
            centres,
            radii,
            order,
        } = self.workspace;
        AttentionParams {
            q: addresses.q,
            k: addresses.k,
            v: addresses.v,
            out: addresses.out,
            lse: addresses.lse,
            slopes: addresses.slopes,
            cu_seqlens_q: addresses.cu_seqlens_q,
            cu_seqlens_k: addresses.cu_seqlens_k,
            seqused_k: addresses.seqused_k,
            leftpad_k: addresses.leftpad_k,
            block_table: addresses.block_table,
            report: addresses.report,
            partial_out: part(out),
            partial_lse: part(lse),
            live: part(live),
            centres: part(centres),
            radii: part(radii),
            order: part(order),
            cache_centres: addresses.centres,
            page_radii: addresses.radii,
            ..self.params
        }
    }

    /// Launches everything, in order.
    ///
    /// # Errors
    /// The executor's.
    ///
    /// # Safety
    /// As [`Executor::launch`]: the addresses are those of the call that was planned.
    pub unsafe fn run<E: Executor>(
        &self,
        executor: &E,
        addresses: &Addresses,
    ) -> std::result::Result<(), E::Error> {
        let params = self.params(addresses);
        for launch in self.launches() {
            // SAFETY: the caller vouches for the addresses.
            unsafe { executor.launch(launch, params.bytes()) }?;
        }
        Ok(())
    }
}

/// The number of blocks, where each has `part` of a tensor.
fn grid(argument: &'static str, tensor: &Layout, part: &str, blocks: Option<usize>) -> Result<u32> {
    blocks
        .and_then(|blocks| i32::try_from(blocks).ok())
        .map(|blocks| blocks as u32)
        .ok_or_else(|| Error::Shape {
            argument,
            found: tensor.shape(),
            expected: format!("fewer than 2^31 blocks of {part}"),
        })
}

fn rows_of_all(rows: usize) -> String {
    format!("{rows} rows, over all heads and sequences")
}

impl Device {
    fn check(&self, compute_capability: (u32, u32), shared_bytes: u32) -> Result<()> {
        let (major, minor) = compute_capability;
        if self.compute_capability < compute_capability {
            let (found_major, found_minor) = self.compute_capability;
            return Err(value(
                "device",
                format!("compute capability {found_major}.{found_minor}"),
                format!("{major}.{minor} or later"),
            ));
        }
        if self.shared_bytes_per_block < shared_bytes {
            return Err(value(
                "device",
                format!(
                    "{} bytes of shared memory a block",
                    self.shared_bytes_per_block
                ),
                format!("at least {shared_bytes}"),
            ));
        }
        Ok(())
    }
}

fn params(attention: &Attention, call: &Call, sizes: &Sizes) -> AttentionParams {
    let Call {
        q,
        k,
        v,
        out,
        packed,
        paged,
        ..
    } = *call;
    let heads_q = attention.heads_q();
    let lse_batch_stride = if packed.is_some() {
        0
    } else {
        heads_q * q.rows
    };
    // A window that reaches over all keys is none; so no sum of a position and a window overflows.
    let window =
        |side: Option<usize>, all: usize| side.filter(|&n| n < all).map_or(-1, |n| n as i32);
    let pages = match paged {
        Some(paged) => AttentionParams {
            table_stride: paged.stride as i64,
            table_columns: paged.columns as i32,
            page_size: k.rows as i32,
            pages: k.batch.unwrap_or(0) as i32,
            ..AttentionParams::default()
        },
        None => AttentionParams::default(),
    };
    AttentionParams {
        q_strides: strides(&q),
        k_strides: strides(&k),
        v_strides: strides(&v),
        out_strides: strides(&out),
        lse_batch_stride: lse_batch_stride as i64,
        lse_head_stride: q.rows as i64,
        slopes_batch_stride: attention.slopes().batch().map_or(0, |_| heads_q as i64),
        seqlen_q: sizes.seqlen_q as i32,
        seqlen_k: sizes.seqlen_k as i32,
        rows_q: q.rows as i32,
        rows_k: k.rows as i32,
        batch: sizes.batch as i32,
        heads_q: heads_q as i32,
        group: attention.group() as i32,
        head_dim: attention.head_dim() as i32,
        window_left: window(attention.window_left(), sizes.seqlen_k),
        window_right: window(attention.window_right(), sizes.seqlen_q),
        splits: 1,
        scale: attention.scale(),
        softcap: attention.softcap().unwrap_or(0.0),
        tolerance: match attention.horizon() {
            Horizon::Off => 0.0,
            Horizon::Certified { tolerance } => tolerance,
            Horizon::Bitwise => -1.0,
        },
        ..pages
    }
}

fn strides(layout: &Layout) -> TensorStrides {
    // A dimension of one index, or of none, is not stepped over: its stride may be anything.
    let stride = |n: usize, stride: usize| if n > 1 { stride as i64 } else { 0 };
    match layout.span() {
        0 => TensorStrides::default(),
        _ => TensorStrides {
            batch: layout
                .batch
                .map_or(0, |batch| stride(batch, layout.batch_stride)),
            row: stride(layout.rows, layout.row_stride),
            head: stride(layout.heads, layout.head_stride),
        },
    }
}
