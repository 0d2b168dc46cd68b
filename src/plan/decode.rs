//! The kernels of `kernels/decode.cu`: a block has (token, head) rows of one key head, and a part of its keys.

use super::{Call, Device, Dtype, Launch, MAX_SEQLEN, Sizes, Workspace, grid, rows_of_all};
use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::horizon::{self, Horizon};
use crate::kernels;

/// One kernel: the largest head dimension and number of rows of a block, and its names.
struct Kernel {
    head_dim: usize,
    rows: usize,
    names: [&'static str; 2],
}

const fn kernel(head_dim: usize, rows: usize, names: [&'static str; 2]) -> Kernel {
    Kernel {
        head_dim,
        rows,
        names,
    }
}

/// For up to 16 rows, and for more. Head dimensions that are not here take the next.
const FEW: usize = 16;
const FOR_FEW: [Kernel; 4] = [
    kernel(64, FEW, ["decode_f16_d64_r16", "decode_bf16_d64_r16"]),
    kernel(96, FEW, ["decode_f16_d96_r16", "decode_bf16_d96_r16"]),
    kernel(128, FEW, ["decode_f16_d128_r16", "decode_bf16_d128_r16"]),
    kernel(256, FEW, ["decode_f16_d256_r16", "decode_bf16_d256_r16"]),
];
const FOR_MANY: [Kernel; 3] = [
    kernel(64, 128, ["decode_f16_d64_r128", "decode_bf16_d64_r128"]),
    kernel(128, 128, ["decode_f16_d128_r128", "decode_bf16_d128_r128"]),
    kernel(256, 64, ["decode_f16_d256_r64", "decode_bf16_d256_r64"]),
];
/// The kernels of `kernels/live.cu`, by the rows of the blocks that they work for.
const LIVE: [(usize, [&str; 2]); 3] = [
    (16, ["live_f16_r16", "live_bf16_r16"]),
    (64, ["live_f16_r64", "live_bf16_r64"]),
    (128, ["live_f16_r128", "live_bf16_r128"]),
];
const LIVE_THREADS: u32 = 256;
const THREADS: u32 = 128;
const WARPS: usize = 4;

/// Beyond this, merging the parts costs more than they save.
const MAX_SPLITS: usize = 128;
/// The fewest keys that are worth a block.
const MIN_KEYS: usize = 128;

impl Kernel {
    fn of(attention: &Attention, rows: usize) -> &'static Self {
        let kernels: &[Self] = if rows <= FEW { &FOR_FEW } else { &FOR_MANY };
        kernels
            .iter()
            .find(|kernel| kernel.head_dim >= attention.head_dim())
            .expect("a layer has no larger head_dim")
    }

    /// The keys of a tile.
    fn keys(&self) -> usize {
        if self.rows > 64 { 32 } else { 64 }
    }

    /// The rows of Q, and a ring of up to 64 KiB of tiles of K and V.
    fn shared_bytes(&self) -> usize {
        let tile = self.keys() * self.head_dim * 2;
        self.rows * self.head_dim * 2 + (65536 / tile).clamp(2, 8) / 2 * 2 * tile
    }

    /// Blocks without splits.
    fn blocks(&self, attention: &Attention, sizes: &Sizes) -> Option<usize> {
        rows(attention, sizes)?
            .div_ceil(self.rows)
            .checked_mul(attention.heads_k())?
            .checked_mul(sizes.batch)
    }
}

/// The rows of a key head.
fn rows(attention: &Attention, sizes: &Sizes) -> Option<usize> {
    sizes.seqlen_q.checked_mul(attention.group())
}

/// Tiles of keys of the longest sequence.
pub(super) fn tiles(attention: &Attention, sizes: &Sizes) -> usize {
    let kernel = Kernel::of(attention, rows(attention, sizes).unwrap_or(usize::MAX));
    sizes.seqlen_k.div_ceil(kernel.keys())
}

/// Whether keys are left out, of a cache with `radii`. A bitwise horizon would need the maxima that the parts of the keys
/// have, which are not known beforehand: it leaves out nothing here.
fn has_horizon(attention: &Attention, sizes: &Sizes, radii: bool) -> bool {
    let certified = matches!(attention.horizon(), Horizon::Certified { .. });
    // What a row sees. A layer's windows decide, so that calls of any number of rows need the same kernels.
    let window = match (attention.window_left(), attention.window_right()) {
        (Some(left), Some(right)) => left.saturating_add(right).saturating_add(1),
        _ => usize::MAX,
    };
    radii && certified && window.min(sizes.seqlen_k) >= horizon::MIN_KEYS
}

/// As few as fill the device nearly as well as any number does: blocks come in waves, of as many as run at once, and the last
/// wave takes as long as a full one.
pub(super) fn splits(attention: &Attention, sizes: &Sizes, device: &Device) -> usize {
    let kernel = Kernel::of(attention, rows(attention, sizes).unwrap_or(usize::MAX));
    let Some(blocks) = kernel.blocks(attention, sizes).filter(|&n| n > 0) else {
        return 1;
    };
    // What a multiprocessor has is little more than what one block may have.
    let resident = (device.shared_bytes_per_block as usize / kernel.shared_bytes()).max(1);
    let at_once = resident * device.multiprocessors as usize;
    let most = (sizes.seen(attention) / MIN_KEYS).clamp(1, MAX_SPLITS);
    let filled = |splits: usize| {
        let blocks = blocks.saturating_mul(splits);
        blocks as f64 / (blocks.div_ceil(at_once).saturating_mul(at_once)) as f64
    };
    let best = (1..=most).map(filled).fold(0.0, f64::max);
    (1..=most)
        .find(|&splits| filled(splits) >= 0.85 * best)
        .unwrap_or(1)
}

pub(super) fn launches(
    attention: &Attention,
    call: &Call,
    sizes: &Sizes,
    device: &Device,
    splits: usize,
) -> Result<(Vec<Launch>, Workspace)> {
    if splits == 0 {
        return Err(value("splits", splits.to_string(), "at least 1"));
    }
    let rows = rows(attention, sizes);
    if rows.is_none_or(|rows| rows > MAX_SEQLEN) {
        return Err(Error::Shape {
            argument: "q",
            found: call.q.shape(),
            expected: format!("at most {MAX_SEQLEN} rows of the heads that share keys"),
        });
    }
    let kernel = Kernel::of(attention, rows.unwrap_or(usize::MAX));
    let shared_bytes = kernel.shared_bytes() as u32;
    device.check((8, 0), shared_bytes)?;
    let blocks = kernel
        .blocks(attention, sizes)
        .and_then(|blocks| blocks.checked_mul(splits));
    let grid_of_parts = grid("q", &call.q, &rows_of_all(kernel.rows), blocks)?;
    if grid_of_parts == 0 {
        return Ok((Vec::new(), Workspace::default()));
    }
    let dtype = match call.dtype {
        Dtype::F16 => 0,
        Dtype::Bf16 => 1,
    };
    let file = kernels::named("decode").expect("the build has all kernels");
    let radii = call.paged.is_some_and(|paged| paged.radii);
    let workspace = workspace(attention, sizes, splits, radii);
    let mut launches = Vec::new();
    if workspace.live > 0 {
        let (_, names) = (LIVE.iter())
            .find(|(rows, _)| *rows == kernel.rows)
            .expect("every decode kernel has one");
        launches.push(Launch {
            file: kernels::named("live").expect("the build has all kernels"),
            kernel: names[dtype],
            // A block for each that has all keys.
            grid: grid_of_parts / splits as u32,
            block: LIVE_THREADS,
            shared_bytes: 0,
        });
    }
    launches.push(Launch {
        file,
        kernel: kernel.names[dtype],
        grid: grid_of_parts,
        block: THREADS,
        shared_bytes,
    });
    if splits == 1 {
        return Ok((launches, workspace));
    }

    let merged = rows
        .and_then(|rows| rows.checked_mul(attention.heads_k()))
        .and_then(|rows| rows.checked_mul(sizes.batch));
    launches.push(Launch {
        file,
        kernel: ["combine_f16", "combine_bf16"][dtype],
        grid: grid(
            "q",
            &call.q,
            &rows_of_all(WARPS),
            merged.map(|rows| rows.div_ceil(WARPS)),
        )?,
        block: THREADS,
        shared_bytes: 0,
    });
    Ok((launches, workspace))
}

/// What so many parts leave; one part writes the result itself. And the lists of the tiles of a cache with `radii`.
pub(super) fn workspace(
    attention: &Attention,
    sizes: &Sizes,
    splits: usize,
    radii: bool,
) -> Workspace {
    let product =
        |sizes: &[usize]| (sizes.iter()).fold(1u64, |product, &n| product.saturating_mul(n as u64));
    let parts = if splits == 1 { 0 } else { splits };
    let results = product(&[attention.heads_q(), sizes.seqlen_q, sizes.batch, parts]);
    let lists = if has_horizon(attention, sizes, radii) {
        let kernel = Kernel::of(attention, rows(attention, sizes).unwrap_or(usize::MAX));
        kernel.blocks(attention, sizes).unwrap_or(usize::MAX)
    } else {
        0
    };
    Workspace {
        out: results.saturating_mul(4 * attention.head_dim() as u64),
        lse: results.saturating_mul(4),
        live: product(&[lists, 1 + tiles(attention, sizes), 4]),
        ..Workspace::default()
    }
}
