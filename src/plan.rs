//! What a call launches: pure data, made without a device and tested without one.
//!
//! A layer ([`Attention`]), the shapes of a call ([`Call`]) and what matters of a device ([`Device`]) make a [`Plan`]: which
//! kernel, with what grid, block, shared memory and parameters. An [`Executor`] carries it out on addresses that it
//! understands: the driver's, or an emulator's.

use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::kernels::{self, AttentionParams, Embedded, TensorStrides};
use crate::problem::{check_shapes, check_slopes};
use crate::tensor::Layout;

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
}

/// How many sequences are packed, and the bounds of their lengths. The lengths themselves lie on the device: what exceeds
/// these bounds there is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// The number of sequences: `cu_seqlens` have one more.
    pub batch: usize,
    /// At least the query rows of the longest sequence.
    pub max_seqlen_q: usize,
    /// At least the key rows of the longest sequence.
    pub max_seqlen_k: usize,
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
    launch: Option<Launch>,
    params: AttentionParams,
}

/// What the kernels of `kernels/prefill.cu` have in common.
mod prefill {
    /// The head dimensions that there are kernels for; others take the next.
    pub const KERNELS: [(usize, [&str; 2]); 8] = [
        (32, ["prefill_f16_d32", "prefill_bf16_d32"]),
        (64, ["prefill_f16_d64", "prefill_bf16_d64"]),
        (80, ["prefill_f16_d80", "prefill_bf16_d80"]),
        (96, ["prefill_f16_d96", "prefill_bf16_d96"]),
        (112, ["prefill_f16_d112", "prefill_bf16_d112"]),
        (128, ["prefill_f16_d128", "prefill_bf16_d128"]),
        (192, ["prefill_f16_d192", "prefill_bf16_d192"]),
        (256, ["prefill_f16_d256", "prefill_bf16_d256"]),
    ];
    pub const THREADS: u32 = 128;

    /// Query rows of a block, and keys of a tile.
    pub const fn tile(head_dim: usize) -> (usize, usize) {
        match head_dim {
            ..=64 => (128, 128),
            65..=128 => (128, 64),
            _ => (64, 64),
        }
    }
}

impl Plan {
    /// Plans attention over many queries a sequence.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Strides`] or [`Error::Value`] for tensors that do not fit the layer, each other or the
    /// kernels' limits (2^30 rows a sequence, 2^31 blocks), and for a device that is too old or too small.
    pub fn prefill(attention: &Attention, call: &Call, device: &Device) -> Result<Self> {
        let Call {
            q,
            k,
            v,
            out,
            packed,
            ..
        } = *call;
        check_shapes(attention, packed.is_some(), [q, k, v, out])?;
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
        let (seqlen_q, seqlen_k) = match packed {
            Some(packed) => (
                packed.max_seqlen_q.min(q.rows),
                packed.max_seqlen_k.min(k.rows),
            ),
            None => (q.rows, k.rows),
        };
        // Positions are 32-bit, and so are the indices in cu_seqlens.
        let (sequence, total) = (1 << 30, i32::MAX as usize);
        for (argument, layout, rows) in [("q", q, seqlen_q), ("k", k, seqlen_k)] {
            if rows > sequence || layout.rows > total {
                return Err(Error::Shape {
                    argument,
                    found: layout.shape(),
                    expected: format!("at most {sequence} rows a sequence and {total} in all"),
                });
            }
        }

        let (head_dim, names) = *prefill::KERNELS
            .iter()
            .find(|(head_dim, _)| *head_dim >= attention.head_dim())
            .expect("a layer has no larger head_dim");
        let (rows, keys) = prefill::tile(head_dim);
        let shared_bytes = ((rows + 2 * keys) * head_dim * 2) as u32;
        device.check((8, 0), shared_bytes)?;
        let blocks = seqlen_q
            .div_ceil(rows)
            .checked_mul(attention.heads_q())
            .and_then(|blocks| blocks.checked_mul(batch))
            .and_then(|blocks| i32::try_from(blocks).ok())
            .ok_or_else(|| Error::Shape {
                argument: "q",
                found: q.shape(),
                expected: format!(
                    "fewer than 2^31 blocks of {rows} rows, over all heads and sequences"
                ),
            })?;
        // Where there are no rows, there is nothing to write.
        let launch = (blocks > 0).then(|| Launch {
            file: kernels::named("prefill").expect("the build has all kernels"),
            kernel: names[match call.dtype {
                Dtype::F16 => 0,
                Dtype::Bf16 => 1,
            }],
            grid: blocks as u32,
            block: prefill::THREADS,
            shared_bytes,
        });

        let heads_q = attention.heads_q();
        let lse_batch_stride = if packed.is_some() {
            0
        } else {
            heads_q * q.rows
        };
        // A window that reaches over all keys is none; so no sum of a position and a window overflows.
        let window =
            |side: Option<usize>, all: usize| side.filter(|&n| n < all).map_or(-1, |n| n as i32);
        let params = AttentionParams {
            q_strides: strides(&q),
            k_strides: strides(&k),
            v_strides: strides(&v),
            out_strides: strides(&out),
            lse_batch_stride: lse_batch_stride as i64,
            lse_head_stride: q.rows as i64,
            slopes_batch_stride: attention.slopes().batch().map_or(0, |_| heads_q as i64),
            seqlen_q: seqlen_q as i32,
            seqlen_k: seqlen_k as i32,
            rows_q: q.rows as i32,
            rows_k: k.rows as i32,
            batch: batch as i32,
            heads_q: heads_q as i32,
            group: attention.group() as i32,
            head_dim: attention.head_dim() as i32,
            window_left: window(attention.window_left(), seqlen_k),
            window_right: window(attention.window_right(), seqlen_q),
            scale: attention.scale(),
            softcap: attention.softcap().unwrap_or(0.0),
            ..AttentionParams::default()
        };
        Ok(Self { launch, params })
    }

    /// The launches, in order.
    pub fn launches(&self) -> &[Launch] {
        self.launch.as_slice()
    }

    /// The kernel's parameters for tensors at these addresses.
    pub fn params(&self, addresses: &Addresses) -> AttentionParams {
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
