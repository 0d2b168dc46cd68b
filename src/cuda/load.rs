//! All kernels that a layer's calls may need, loaded beforehand: a stream that captures cannot.

use half::{bf16, f16};

use super::{Element, Kernels, Result};
use crate::attention::Attention;
use crate::error;
use crate::horizon::MIN_KEYS;
use crate::plan::{Append, Call, CopyPages, Dtype, MergeState, Paged, Plan};
use crate::tensor::Layout;

impl Kernels {
    /// Loads the kernels for a layer.
    pub(super) fn load(&self, attention: &Attention) -> Result<()> {
        let device = self.device();
        for dtype in DTYPES {
            // As many rows as keys: with a window, few rows see too few keys for the kernels that bound them.
            let call = small_call(attention, dtype, MIN_KEYS, MIN_KEYS)?;
            let mut plans = vec![
                Plan::prefill(attention, &call, device)?,
                Plan::prefill(attention, &with_pages(call, MIN_KEYS)?, device)?,
                // Too few keys for a horizon.
                Plan::prefill(attention, &small_call(attention, dtype, 1, 1)?, device)?,
            ];
            for seqlen_q in [1, 32] {
                let call = small_call(attention, dtype, seqlen_q, 1)?;
                let call = with_pages(call, MIN_KEYS)?;
                plans.push(Plan::decode_with_splits(attention, &call, device, 2)?);
            }
            let merge = MergeState::new(dtype, &call.q, &call.q)?;
            for launch in plans
                .iter()
                .flat_map(Plan::candidates)
                .chain(merge.launches())
            {
                self.function(launch)?;
            }
        }
        let (heads_k, head_dim) = (attention.heads_k(), attention.head_dim());
        let key = Layout::contiguous("k", &[1, heads_k, head_dim])?;
        let page = Layout::contiguous("k_pages", &[1, PAGE_SIZE, heads_k, head_dim])?;
        let mut appends = vec![Append::new(&key, &key, &page, &page)?];
        for dtype in DTYPES {
            appends.push(Append::with_radii(dtype, &key, &key, &page, &page)?);
        }
        let copy = CopyPages::new(1, &page, &page)?;
        for launch in appends
            .iter()
            .flat_map(Append::launches)
            .chain(copy.launches())
        {
            self.function(launch)?;
        }
        Ok(())
    }
}

/// The types of [`Element`].
const DTYPES: [Dtype; 2] = [f16::DTYPE, bf16::DTYPE];
const PAGE_SIZE: usize = 8;

/// A call of few rows: it needs the kernels that larger calls of the layer do.
fn small_call(
    attention: &Attention,
    dtype: Dtype,
    seqlen_q: usize,
    seqlen_k: usize,
) -> error::Result<Call> {
    let batch = attention.slopes().batch().unwrap_or(1);
    let layout = |argument, rows, heads| {
        Layout::contiguous(argument, &[batch, rows, heads, attention.head_dim()])
    };
    let (q, k) = (
        layout("q", seqlen_q, attention.heads_q())?,
        layout("k", seqlen_k, attention.heads_k())?,
    );
    Ok(Call {
        dtype,
        q,
        k,
        v: k,
        out: q,
        packed: None,
        paged: None,
    })
}

/// The same call of a cache that has radii, of as many keys.
fn with_pages(call: Call, keys: usize) -> error::Result<Call> {
    let pool = Layout::contiguous("k", &[1, PAGE_SIZE, call.k.heads, call.k.head_dim])?;
    let paged = Paged {
        columns: keys / PAGE_SIZE,
        stride: keys / PAGE_SIZE,
        max_seqlen_k: keys,
        radii: true,
    };
    Ok(Call {
        k: pool,
        v: pool,
        paged: Some(paged),
        ..call
    })
}
