//! What a call launches: pure data, made without a device and tested without one.
//!
//! A layer ([`Attention`](crate::Attention)), the shapes of a call ([`Call`]) and what matters of a device ([`Device`]) make a [`Plan`]: which
//! kernel, with what grid, block, shared memory and parameters. An [`Executor`] carries it out on addresses that it
//! understands: the driver's, or an emulator's.

mod append;
mod attend;
mod copy;
mod decode;
mod hopper;
mod launch;
mod merge;
mod prefill;
mod sizes;
mod workspace;

use crate::error::{Result, value};
use crate::kernels::Table;
use crate::tensor::Layout;

pub use crate::kernels::{Architecture, Dtype};
pub use crate::sequences::{Packed, Paged};
pub use append::{Append, AppendAddresses};
pub use attend::Plan;
pub use copy::{CopyPages, CopyPagesAddresses};
pub use launch::{Executor, Launch, Operand, Swizzle, TensorMap};
pub use merge::{MergeState, MergeStateAddresses};

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

/// The largest head dimension of the kernels.
pub(crate) const MAX_HEAD_DIM: usize = 256;

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
    /// i32 `[batch]`: query row `i` stands at key position `i + offset`; 0: at `i + seqlen_k - seqlen_q`.
    pub offset: u64,
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

impl Device {
    /// The newest architecture whose kernels it runs.
    pub(crate) fn architecture(&self) -> Result<Architecture> {
        let runs = |architecture: &&Architecture| architecture.runs_on(self.compute_capability);
        let newest = Architecture::ALL.iter().rev().find(runs);
        newest.copied().ok_or_else(|| {
            let version = |(major, minor)| format!("{major}.{minor}");
            let oldest = Architecture::ALL[0].compute_capability();
            value(
                "device",
                format!("compute capability {}", version(self.compute_capability)),
                format!("{} or later", version(oldest)),
            )
        })
    }

    /// Whether a block may have as much shared memory.
    fn check_shared_bytes(&self, needed: u32) -> Result<()> {
        let most = self.shared_bytes_per_block;
        if most < needed {
            return Err(value(
                "device",
                format!("{most} bytes of shared memory a block"),
                format!("at least {needed}"),
            ));
        }
        Ok(())
    }
}

/// Checks that there are kernels for a head dimension.
pub(crate) fn check_head_dim(head_dim: usize) -> Result<()> {
    match head_dim <= MAX_HEAD_DIM {
        true => Ok(()),
        false => {
            let expected = format!("at most {MAX_HEAD_DIM} on a CUDA device");
            Err(value("head_dim", head_dim, expected))
        }
    }
}

/// The kernels that only move elements: those of the oldest architecture, which every device runs.
fn moving() -> &'static Table {
    Architecture::ALL[0].table()
}
