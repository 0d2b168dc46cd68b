//! The kernels of `decode.cu`: a block has (token, head) rows of one key head, and a part of its keys. Of a cache with radii,
//! those of `live.cu` first.

use super::launch::Launch;
use super::sizes::{ELEMENT_BYTES, Sizes, grid, rows_of_all};
use super::workspace::{Workspace, words};
use super::{Call, Device};
use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::horizon::Horizon;
use crate::kernels::{Decode, Live, Table};
use crate::limits::{MAX_SEQLEN, MIN_HORIZON_KEYS};

/// Beyond this, merging the parts costs more than they save.
const MAX_SPLITS: usize = 128;
/// The fewest keys that are worth a block.
const MIN_KEYS: usize = 128;
/// As full as a device must be, of what any number of parts does.
const FULL_ENOUGH: f64 = 0.85;

/// The most rows that the kernels for few rows have.
fn few(table: &Table) -> usize {
    table
        .decode
        .iter()
        .map(|kernel| kernel.rows)
        .min()
        .unwrap_or(0)
}

/// The kernel for so many rows of a key head: with the fewest rows if these suffice, or else with many.
fn kernel(attention: &Attention, table: &'static Table, rows: usize) -> &'static Decode {
    let few = few(table);
    let fits = |kernel: &&Decode| {
        kernel.head_dim >= attention.head_dim() && (kernel.rows == few) == (rows <= few)
    };
    table
        .decode
        .iter()
        .find(fits)
        .expect("a layer has no larger head_dim")
}

impl Decode {
    /// The rows of Q, and the ring of tiles of K and V.
    fn shared_bytes(&self) -> usize {
        (self.rows + self.stages * self.keys) * self.head_dim * ELEMENT_BYTES
    }

    /// Blocks without splits.
    fn blocks(&self, attention: &Attention, sizes: &Sizes) -> Option<usize> {
        rows(attention, sizes)?
            .div_ceil(self.rows)
            .checked_mul(attention.heads_k())?
            .checked_mul(sizes.batch)
    }

    /// As few parts as fill the device nearly as well as any number up to `most` does: blocks come in waves, of as many as
    /// run at once, and the last wave takes as long as a full one.
    ///
    /// With a larger `most` there are no fewer.
    fn splits(&self, blocks: usize, most: usize, device: &Device) -> usize {
        let at_once = self.at_once(device);
        let filled = |splits: usize| {
            let blocks = blocks.saturating_mul(splits);
            blocks as f64 / (blocks.div_ceil(at_once).saturating_mul(at_once)) as f64
        };
        let best = (1..=most).map(filled).fold(0.0, f64::max);
        (1..=most)
            .find(|&splits| filled(splits) >= FULL_ENOUGH * best)
            .unwrap_or(1)
    }

    /// The blocks that run at once. What a multiprocessor has is little more than what one block may have.
    fn at_once(&self, device: &Device) -> usize {
        let resident = (device.shared_bytes_per_block as usize / self.shared_bytes()).max(1);
        resident * (device.multiprocessors as usize).max(1)
    }
}

/// The rows of a key head.
fn rows(attention: &Attention, sizes: &Sizes) -> Option<usize> {
    sizes.seqlen_q.checked_mul(attention.group())
}

fn kernel_of(attention: &Attention, table: &'static Table, sizes: &Sizes) -> &'static Decode {
    kernel(
        attention,
        table,
        rows(attention, sizes).unwrap_or(usize::MAX),
    )
}

/// Tiles of keys of the longest sequence.
pub(super) fn tiles(attention: &Attention, table: &'static Table, sizes: &Sizes) -> usize {
    sizes
        .seqlen_k
        .div_ceil(kernel_of(attention, table, sizes).keys)
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
    radii && certified && window.min(sizes.seqlen_k) >= MIN_HORIZON_KEYS
}

/// The most parts that are worth it.
fn most_splits(attention: &Attention, sizes: &Sizes) -> usize {
    (sizes.seen(attention) / MIN_KEYS).clamp(1, MAX_SPLITS)
}

/// In how many parts the keys are divided.
pub(super) fn splits(
    attention: &Attention,
    table: &'static Table,
    sizes: &Sizes,
    device: &Device,
) -> usize {
    let kernel = kernel_of(attention, table, sizes);
    match kernel.blocks(attention, sizes) {
        None | Some(0) => 1,
        Some(blocks) => kernel.splits(blocks, most_splits(attention, sizes), device),
    }
}

pub(super) fn launches(
    attention: &Attention,
    table: &'static Table,
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
    let kernel = kernel_of(attention, table, sizes);
    let shared_bytes = kernel.shared_bytes() as u32;
    device.check_shared_bytes(shared_bytes)?;
    let blocks = kernel
        .blocks(attention, sizes)
        .and_then(|blocks| blocks.checked_mul(splits));
    let grid_of_parts = grid("q", &call.q, &rows_of_all(kernel.rows), blocks)?;
    if grid_of_parts == 0 {
        return Ok((Vec::new(), Workspace::default()));
    }
    let radii = call.paged.is_some_and(|paged| paged.radii);
    let workspace = workspace(attention, table, sizes, splits, radii);
    let mut launches = Vec::new();
    if workspace.live > 0 {
        let same_blocks = |live: &&Live| (live.rows, live.keys) == (kernel.rows, kernel.keys);
        let live = table.live.iter().find(same_blocks);
        let live = live.expect("every decode kernel has one");
        // A block for each that has all keys.
        let grid = grid_of_parts / splits as u32;
        launches.push(Launch::new(live.kernel.of(call.dtype), grid));
    }
    launches.push(Launch {
        shared_bytes,
        ..Launch::new(kernel.kernel.of(call.dtype), grid_of_parts)
    });
    if splits == 1 {
        return Ok((launches, workspace));
    }

    let combine = &table.combine;
    let merged = rows
        .and_then(|rows| rows.checked_mul(attention.heads_k()))
        .and_then(|rows| rows.checked_mul(sizes.batch))
        .map(|rows| rows.div_ceil(combine.rows));
    let grid = grid("q", &call.q, &rows_of_all(combine.rows), merged)?;
    launches.push(Launch::new(combine.kernel.of(call.dtype), grid));
    Ok((launches, workspace))
}

/// What so many parts leave; one part writes the result itself. And the lists of the tiles of a cache with `radii`.
fn workspace(
    attention: &Attention,
    table: &'static Table,
    sizes: &Sizes,
    splits: usize,
    radii: bool,
) -> Workspace {
    let parts = if splits == 1 { 0 } else { splits };
    let results = words(&[attention.heads_q(), sizes.seqlen_q, sizes.batch, parts]);
    let lists = match has_horizon(attention, sizes, radii) {
        true => {
            let blocks = kernel_of(attention, table, sizes).blocks(attention, sizes);
            blocks.unwrap_or(usize::MAX)
        }
        false => 0,
    };
    Workspace {
        out: results.saturating_mul(attention.head_dim() as u64),
        lse: results,
        live: words(&[lists, 1 + tiles(attention, table, sizes)]),
        ..Workspace::default()
    }
}

/// At least what any call needs whose sizes are no larger than these, on a cache with radii or without.
///
/// What parts leave does not grow with the batch or the rows: fewer blocks have more parts. But where there are many waves of
/// blocks, none has parts, so that all numbers of blocks up to there can be tried.
pub(super) fn workspace_up_to(
    attention: &Attention,
    table: &'static Table,
    device: &Device,
    most: &Sizes,
) -> u64 {
    let (heads_k, group) = (attention.heads_k(), attention.group());
    let all_rows = rows(attention, most).unwrap_or(usize::MAX);
    let few_rows = few(table).min(all_rows) / group * group;
    let most_splits = most_splits(attention, most);
    // Sequences of so many rows of a key head or fewer, all by one kernel.
    let of_kernel = |kernel: &Decode, rows: usize| -> u64 {
        let blocks_of_sequence = rows.div_ceil(kernel.rows);
        let most_blocks = blocks_of_sequence.saturating_mul(most.batch);
        let rows_of_block = kernel.rows.min(rows);
        // A device is full enough with f / (1 - f) waves, whatever a part of a wave is left over.
        let waves = (FULL_ENOUGH / (1.0 - FULL_ENOUGH)).ceil() as usize;
        let never_split = (waves * kernel.at_once(device)).div_ceil(heads_k.max(1));
        let results = (1..=most_blocks.min(never_split)).map(|blocks| {
            let rows = (blocks * rows_of_block).min(rows.saturating_mul(most.batch));
            match kernel.splits(blocks * heads_k, most_splits, device) {
                1 => 0,
                splits => words(&[rows, heads_k, splits, attention.head_dim() + 1]),
            }
        });
        let lists = match has_horizon(attention, most, true) {
            true => words(&[
                most_blocks,
                heads_k,
                1 + most.seqlen_k.div_ceil(kernel.keys),
            ]),
            false => 0,
        };
        results.max().unwrap_or(0).saturating_add(lists)
    };
    let of_few = match few_rows {
        0 => 0,
        rows => of_kernel(kernel(attention, table, rows), rows),
    };
    let of_many = match all_rows > few(table) {
        true => of_kernel(kernel(attention, table, all_rows), all_rows),
        false => 0,
    };
    of_few.max(of_many)
}
