//! The kernel of `merge_state.cu`: attention over other keys is merged into a result.

use super::MAX_HEAD_DIM;
use super::launch::{self, Executor, Launch};
use super::sizes::{MAX_ROWS, grid, strides};
use super::{Dtype, moving};
use crate::error::{Error, Result};
use crate::kernels::{MergeStateParams, Params as _};
use crate::tensor::Layout;

/// What a merge launches.
#[derive(Debug, Clone)]
pub struct MergeState {
    launches: Vec<Launch>,
    params: MergeStateParams,
}

/// Where the tensors of a merge lie on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeStateAddresses {
    /// The first element of the result that is merged into.
    pub out: u64,
    /// f32 `[batch, heads_q, seqlen_q]`, packed `[heads_q, total_q]`, likewise.
    pub lse: u64,
    /// The first element of the other result.
    pub other_out: u64,
    /// As `lse`.
    pub other_lse: u64,
}

impl MergeState {
    /// Plans to merge `[batch, seqlen_q, heads_q, head_dim]` (packed `[total_q, heads_q, head_dim]`) into as much, as
    /// [`merge_states`](crate::merge_states) does.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Strides`] for tensors that do not fit each other, an `out` whose elements overlap, a
    /// head_dim that is no multiple of 8, and more than 2^31 blocks.
    pub fn new(dtype: Dtype, out: &Layout, other_out: &Layout) -> Result<Self> {
        let merge = &moving().merge_state;
        let chunk = merge.elements;
        let batch = out.batch.unwrap_or(1);
        // The threads of a row are those of one warp.
        let fits = out.head_dim.is_multiple_of(chunk) && out.head_dim <= MAX_HEAD_DIM;
        if !fits || batch > MAX_ROWS || out.rows > MAX_ROWS || out.heads > MAX_ROWS {
            return Err(Error::Shape {
                argument: "out",
                found: out.shape(),
                expected: format!(
                    "[batch, seqlen_q, heads_q, a multiple of {chunk} up to {MAX_HEAD_DIM}], each up to {MAX_ROWS}"
                ),
            });
        }
        if other_out.shape() != out.shape() {
            return Err(Error::Shape {
                argument: "other_out",
                found: other_out.shape(),
                expected: format!("{:?}, as out", out.shape()),
            });
        }
        if !out.is_injective() {
            return Err(Error::Strides {
                argument: "out",
                found: out.strides(),
                expected: "strides that keep the output's elements apart".into(),
            });
        }
        // The threads of a row are a power of two, so that none has parts of two warps.
        let lanes = (out.head_dim / chunk).next_power_of_two();
        let rows = batch.checked_mul(out.rows);
        let threads = rows
            .and_then(|rows| rows.checked_mul(out.heads))
            .and_then(|rows| rows.checked_mul(lanes));
        let kernel = merge.kernel.of(dtype);
        let blocks = threads.map(|threads| threads.div_ceil(kernel.threads as usize));
        let part = format!("{} threads", kernel.threads);
        let grid = grid("out", out, &part, blocks)?;
        Ok(Self {
            launches: (grid > 0)
                .then(|| Launch::new(kernel, grid))
                .into_iter()
                .collect(),
            params: MergeStateParams {
                out_strides: strides(out),
                other_out_strides: strides(other_out),
                batch: batch as i32,
                rows: out.rows as i32,
                heads_q: out.heads as i32,
                head_dim: out.head_dim as i32,
                ..MergeStateParams::default()
            },
        })
    }

    /// The launches, in order; none where there are no rows.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// Launches everything, in order.
    ///
    /// # Errors
    /// The executor's.
    ///
    /// # Safety
    /// As [`Executor::launch`]: the addresses are those of the tensors that were planned.
    pub unsafe fn run<E: Executor>(
        &self,
        executor: &E,
        addresses: &MergeStateAddresses,
    ) -> std::result::Result<(), E::Error> {
        let params = MergeStateParams {
            out: addresses.out,
            lse: addresses.lse,
            other_out: addresses.other_out,
            other_lse: addresses.other_lse,
            ..self.params
        };
        // SAFETY: the caller vouches for the addresses.
        unsafe { launch::run(executor, &self.launches, params.bytes()) }
    }
}
