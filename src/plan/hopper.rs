//! The kernels of `kernels/sm90`, in place of those of `prefill.cu`: [`Plan::prefill`](super::Plan::prefill) says where.

use super::launch::{Launch, Operand, Swizzle, TensorMap};
use super::sizes::{ELEMENT_BYTES, Sizes};
use super::{Addresses, Call, Device, Dtype};
use crate::attention::Attention;
use crate::kernels::{Architecture, SM90, WgmmaPrefill};
use crate::tensor::Layout;

/// Of addresses and strides, by tensor maps.
const ALIGNMENT: u64 = 16;

/// Above all strides of a tensor map, in bytes.
const STRIDES: u64 = 1 << 40;

/// Columns of a panel of a tile.
const PANEL: u32 = 64;

/// Scales below count as 0.
const SMALLEST_SCALE: f32 = 1e-30;

/// The kernel for a layer's head dimension.
fn kernel(attention: &Attention) -> Option<&'static WgmmaPrefill> {
    let fits = |kernel: &&WgmmaPrefill| kernel.head_dim >= attention.head_dim();
    SM90.wgmma_prefill.iter().find(fits)
}

fn common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => common_divisor(b, a % b),
    }
}

/// Q, and the tiles of K and V.
fn shared_bytes(kernel: &WgmmaPrefill) -> usize {
    let columns = kernel.head_dim.next_multiple_of(PANEL as usize);
    (kernel.rows + 2 * kernel.stages * kernel.keys) * columns * ELEMENT_BYTES
}

/// A launch that takes tensors at addresses such as [`takes`] says, if there is one; `with_bounds` after those that find what the
/// horizon needs to know of the keys.
pub(super) fn launch(
    attention: &Attention,
    call: &Call,
    sizes: &Sizes,
    device: &Device,
    with_bounds: bool,
) -> Option<Launch> {
    let kernel = kernel(attention)?;
    let shared_bytes = u32::try_from(shared_bytes(kernel)).ok()?;
    let runs = Architecture::Sm90.runs_on(device.compute_capability)
        && shared_bytes <= device.shared_bytes_per_block
        && attention.scale() >= SMALLEST_SCALE;
    if !runs {
        return None;
    }
    // Of a tile, the keys that lie in one piece.
    let box_keys = match call.paged {
        Some(_) => common_divisor(kernel.keys, call.k.rows),
        None => kernel.keys,
    };
    let map = |operand, layout, rows| tensor_map(operand, call.dtype, layout, rows);
    let tensor_maps = vec![
        map(Operand::Q, &call.q, kernel.rows)?,
        map(Operand::K, &call.k, box_keys)?,
        map(Operand::V, &call.v, box_keys)?,
    ];
    let blocks = sizes.seqlen_q.div_ceil(kernel.rows) * attention.heads_q() * sizes.batch;
    let kernels = match with_bounds {
        true => &kernel.kernel.horizon,
        false => &kernel.kernel.prefill,
    };
    Some(Launch {
        shared_bytes,
        tensor_maps,
        ..Launch::new(kernels.of(call.dtype), u32::try_from(blocks).ok()?)
    })
}

/// Whether the launch can have tensors at such addresses.
pub(super) fn takes(addresses: &Addresses) -> bool {
    let Addresses { q, k, v, .. } = addresses;
    [q, k, v].iter().all(|at| at.is_multiple_of(ALIGNMENT))
}

/// Boxes of so many rows of one head, if tensor maps can have its strides.
fn tensor_map(operand: Operand, dtype: Dtype, layout: &Layout, rows: usize) -> Option<TensorMap> {
    let dims = [
        layout.head_dim,
        layout.rows,
        layout.heads,
        layout.batch.unwrap_or(1),
    ];
    if dims.contains(&0) {
        return None;
    }
    let strides = [layout.row_stride, layout.head_stride, layout.batch_stride];
    let in_bytes = |(&n, &stride): (&usize, &usize)| {
        // A dimension of one index is not stepped over: its stride may be anything.
        let bytes = match n {
            1 => ALIGNMENT,
            _ => (stride as u64).checked_mul(ELEMENT_BYTES as u64)?,
        };
        (bytes.is_multiple_of(ALIGNMENT) && (1..STRIDES).contains(&bytes)).then_some(bytes)
    };
    Some(TensorMap {
        operand,
        dtype,
        dims: dims.map(|n| n as u64).to_vec(),
        strides: dims[1..]
            .iter()
            .zip(&strides)
            .map(in_bytes)
            .collect::<Option<_>>()?,
        tile: vec![PANEL, rows as u32, 1, 1],
        swizzle: Swizzle::Bytes128,
    })
}
