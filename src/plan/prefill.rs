//! The kernels of `kernels/prefill.cu`: a block has some rows of one head. With a horizon, those of `kernels/bounds.cu` first.
//! These read all keys, unless the pages of a cache have radii.

use super::{Call, Device, Dtype, Launch, Sizes, Workspace, grid, rows_of_all};
use crate::attention::Attention;
use crate::error::Result;
use crate::horizon::{Horizon, MIN_KEYS};
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

/// The threads of a block that looks at keys.
const BOUNDS_THREADS: u32 = 256;

/// Tiles of keys of the longest sequence, if the horizon may leave out some.
pub(super) fn tiles(attention: &Attention, sizes: &Sizes) -> Option<usize> {
    let may = attention.horizon() != Horizon::Off && sizes.seen(attention) >= MIN_KEYS;
    may.then(|| sizes.seqlen_k.div_ceil(tile(attention.head_dim()).1))
}

/// What the horizon knows of the keys.
pub(super) fn workspace(attention: &Attention, sizes: &Sizes) -> Workspace {
    let Some(tiles) = tiles(attention, sizes) else {
        return Workspace::default();
    };
    let bytes = |counts: [usize; 3]| {
        (counts.iter()).fold(4, |bytes: u64, &n| bytes.saturating_mul(n as u64))
    };
    let (batch, heads_k) = (sizes.batch, attention.heads_k());
    Workspace {
        centres: bytes([batch, heads_k, attention.head_dim()]),
        radii: bytes([batch, heads_k, 3 * tiles]),
        order: bytes([batch, attention.heads_q(), 1]),
        ..Workspace::default()
    }
}

/// None where there are no rows, and nothing to write.
pub(super) fn launches(
    attention: &Attention,
    call: &Call,
    sizes: &Sizes,
    device: &Device,
) -> Result<Vec<Launch>> {
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
    let blocks = grid("q", &call.q, &rows_of_all(rows), blocks)?;
    if blocks == 0 {
        return Ok(Vec::new());
    }
    let dtype = match call.dtype {
        Dtype::F16 => 0,
        Dtype::Bf16 => 1,
    };
    let mut launches = Vec::new();
    if let Some(tiles) = tiles(attention, sizes) {
        let file = kernels::named("bounds").expect("the build has all kernels");
        let of_tiles = match call.paged.is_some_and(|paged| paged.radii) {
            true => &[(
                ["radii_of_pages"; 2],
                tiles.div_ceil(BOUNDS_THREADS as usize),
            )][..],
            false => &[
                (["centres_f16", "centres_bf16"], 1),
                (["radii_f16", "radii_bf16"], tiles),
            ],
        };
        for (names, blocks) in of_tiles.iter().chain(&[(["farther_radii"; 2], 1)]) {
            let all = (sizes.batch.checked_mul(attention.heads_k()))
                .and_then(|heads| heads.checked_mul(*blocks));
            launches.push(Launch {
                file,
                kernel: names[dtype],
                grid: grid("k", &call.k, "tiles of one head", all)?,
                block: BOUNDS_THREADS,
                shared_bytes: 0,
            });
        }
    }
    launches.push(Launch {
        file: kernels::named("prefill").expect("the build has all kernels"),
        kernel: names[dtype],
        grid: blocks,
        block: THREADS,
        shared_bytes,
    });
    Ok(launches)
}
