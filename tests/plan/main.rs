//! Plans: geometry, limits and bad calls. No kernel runs.

mod append;
mod decode;
mod launch;
mod prefill;

use flash_alibi::plan::{Call, Device, Dtype, Paged};
use flash_alibi::{Attention, Layout};

const DEVICE: Device = Device {
    compute_capability: (8, 0),
    shared_bytes_per_block: 163 << 10,
    multiprocessors: 108,
};

fn layer(heads: (usize, usize), head_dim: usize) -> Attention {
    Attention::new(heads.0, heads.1, head_dim).build().unwrap()
}

fn dense(batch: usize, q: usize, k: usize, heads: (usize, usize), head_dim: usize) -> Call {
    let layout = |rows, heads| Layout::contiguous("tensor", &[batch, rows, heads, head_dim]);
    let (q, k) = (layout(q, heads.0).unwrap(), layout(k, heads.1).unwrap());
    Call {
        dtype: Dtype::F16,
        q,
        k,
        v: k,
        out: q,
        packed: None,
        paged: None,
    }
}

/// Of three sequences: 4 query heads, 2 key heads and pages of 16 keys.
fn in_pages(seqlen_q: usize, columns: usize, radii: bool) -> Call {
    let pool = Layout::contiguous("k", &[1000, 16, 2, 64]).unwrap();
    Call {
        k: pool,
        v: pool,
        paged: Some(Paged {
            columns,
            stride: columns,
            max_seqlen_k: usize::MAX,
            radii,
        }),
        ..dense(3, seqlen_q, 0, (4, 2), 64)
    }
}
