//! The kernels of `kernels/prefill.cu`: a block has some rows of one head.

use super::{Call, Device, Dtype, Launch, Sizes, grid, rows_of_all};
use crate::attention::Attention;
use crate::error::Result;
use crate::kernels;

/// The head dimensions that there are kernels for; others take the next.
const KERNELS: [(usize, [&str; 2]); 8] = [
    (32, ["prefill_f16_d32", "prefill_bf16_d32"]),
    (64, ["prefill_f16_d64", "prefill_bf16_d64"]),
    (80, ["prefill_f16_d80", "prefill_bf16_d80"]),
    (96, ["prefill_f16_d96", "prefill_bf16_d96"]),
    (112, ["prefill_f16_d112", "prefill_bf16_d112"]),
    (128, ["prefill_f16_d128", "prefill_bf16_d128"]),
    (192, ["prefill_f16_d192", "prefill_bf16_d192"]),
    (256, ["prefill_f16_d256", "prefill_bf16_d256"]),
];
const THREADS: u32 = 128;

/// Query rows of a block, and keys of a tile.
const fn tile(head_dim: usize) -> (usize, usize) {
    match head_dim {
        ..=64 => (128, 128),
        65..=128 => (128, 64),
        _ => (64, 64),
    }
}

/// None where there are no rows, and nothing to write.
pub(super) fn launch(
    attention: &Attention,
    call: &Call,
    sizes: &Sizes,
    device: &Device,
) -> Result<Option<Launch>> {
    let (head_dim, names) = *KERNELS
        .iter()
        .find(|(head_dim, _)| *head_dim >= attention.head_dim())
        .expect("a layer has no larger head_dim");
    let (rows, keys) = tile(head_dim);
    let shared_bytes = ((rows + 2 * keys) * head_dim * 2) as u32;
    device.check((8, 0), shared_bytes)?;
    let blocks = sizes
        .seqlen_q
        .div_ceil(rows)
        .checked_mul(attention.heads_q())
        .and_then(|blocks| blocks.checked_mul(sizes.batch));
    let grid = grid("q", &call.q, &rows_of_all(rows), blocks)?;
    Ok((grid > 0).then(|| Launch {
        file: kernels::named("prefill").expect("the build has all kernels"),
        kernel: names[match call.dtype {
            Dtype::F16 => 0,
            Dtype::Bf16 => 1,
        }],
        grid,
        block: THREADS,
        shared_bytes,
    }))
}
