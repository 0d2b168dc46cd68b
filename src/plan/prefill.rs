//! The kernels of `prefill.cu`: a block has some rows of one head. With a horizon, those of `bounds.cu` first. These read all
//! keys, unless the pages of a cache have radii.

use super::launch::Launch;
use super::sizes::{ELEMENT_BYTES, Sizes, grid, rows_of_all, strides};
use super::workspace::{Workspace, words};
use super::{Call, Device};
use crate::attention::Attention;
use crate::error::Result;
use crate::horizon::Horizon;
use crate::kernels::{Kernel, PerElement, PerVariant, Prefill, Table, TensorStrides};
use crate::limits::MIN_HORIZON_KEYS;
use crate::tensor::Layout;

/// Where copies of 16 bytes begin.
pub(super) const ALIGNMENT: usize = 16;

/// The kernel for a layer's head dimension.
fn kernel(attention: &Attention, table: &'static Table) -> &'static Prefill {
    let fits = |kernel: &&Prefill| kernel.head_dim >= attention.head_dim();
    table
        .prefill
        .iter()
        .find(fits)
        .expect("a layer has no larger head_dim")
}

/// Whether the kernels for tensors in one piece can read such keys or values: in copies of 16 bytes, of rows whose distance an
/// `i32` counts in bytes. Where they begin is known with their addresses alone.
fn is_aligned(layout: &Layout) -> bool {
    let TensorStrides { batch, row, head } = strides(layout);
    let multiple = |stride: i64| stride % (ALIGNMENT / ELEMENT_BYTES) as i64 == 0;
    let apart = row <= i64::from(i32::MAX) / ELEMENT_BYTES as i64;
    apart && [batch, row, head].into_iter().all(multiple)
}

/// Q, and a tile each of K and V.
fn shared_bytes(kernel: &Prefill) -> usize {
    (kernel.rows + 2 * kernel.keys) * kernel.head_dim * ELEMENT_BYTES
}

/// Tiles of keys of the longest sequence, if the horizon may leave out some.
pub(super) fn tiles(attention: &Attention, table: &'static Table, sizes: &Sizes) -> Option<usize> {
    let may = attention.horizon() != Horizon::Off && sizes.seen(attention) >= MIN_HORIZON_KEYS;
    may.then(|| sizes.seqlen_k.div_ceil(kernel(attention, table).keys))
}

/// What the horizon knows of the keys. It grows with each of the sizes.
pub(super) fn workspace(attention: &Attention, table: &'static Table, sizes: &Sizes) -> Workspace {
    let Some(tiles) = tiles(attention, table, sizes) else {
        return Workspace::default();
    };
    let (batch, heads_k) = (sizes.batch, attention.heads_k());
    Workspace {
        centres: words(&[batch, heads_k, attention.head_dim()]),
        radii: words(&[batch, heads_k, 3, tiles]),
        order: words(&[batch, attention.heads_q()]),
        ..Workspace::default()
    }
}

/// The launches, and what takes the place of the last where keys or values do not begin at multiples of [`ALIGNMENT`]. None
/// where there are no rows, and nothing to write.
pub(super) fn launches(
    attention: &Attention,
    table: &'static Table,
    call: &Call,
    sizes: &Sizes,
    device: &Device,
) -> Result<(Vec<Launch>, Option<Launch>)> {
    let chosen = kernel(attention, table);
    let shared_bytes = shared_bytes(chosen) as u32;
    device.check_shared_bytes(shared_bytes)?;
    let blocks = sizes
        .seqlen_q
        .div_ceil(chosen.rows)
        .checked_mul(attention.heads_q())
        .and_then(|blocks| blocks.checked_mul(sizes.batch));
    let blocks = grid("q", &call.q, &rows_of_all(chosen.rows), blocks)?;
    if blocks == 0 {
        return Ok((Vec::new(), None));
    }
    let mut launches = Vec::new();
    if let Some(tiles) = tiles(attention, table, sizes) {
        // With as many blocks for each sequence and head.
        let mut bounds = |kernel: &Kernel, blocks: usize| -> Result<()> {
            let all = (sizes.batch.checked_mul(attention.heads_k()))
                .and_then(|heads| heads.checked_mul(blocks));
            let grid = grid("k", &call.k, "tiles of one head", all)?;
            launches.push(Launch::new(kernel, grid));
            Ok(())
        };
        if call.paged.is_some_and(|paged| paged.radii) {
            let kernel = &table.page_radii.kernel;
            bounds(kernel, tiles.div_ceil(kernel.threads as usize))?;
        } else {
            bounds(table.centres.kernel.of(call.dtype), 1)?;
            bounds(table.tile_radii.kernel.of(call.dtype), tiles)?;
        }
        bounds(&table.farther_radii.kernel, 1)?;
    }
    let of = |kernels: &PerElement<Kernel>| Launch {
        shared_bytes,
        ..Launch::new(kernels.of(call.dtype), blocks)
    };
    let PerVariant {
        dense,
        horizon,
        any,
    } = &chosen.kernel;
    if call.paged.is_some() || !is_aligned(&call.k) || !is_aligned(&call.v) {
        launches.push(of(any));
        return Ok((launches, None));
    }
    let without_bounds = launches.is_empty();
    launches.push(of(if without_bounds { dense } else { horizon }));
    Ok((launches, Some(of(any))))
}
