//! Attention: which kernels a call launches, with what parameters.

use super::launch::{self, Executor, Launch};
use super::sizes::{Sizes, params};
use super::workspace::{self, Workspace};
use super::{Addresses, Call, Device, decode, hopper, prefill};
use crate::attention::Attention;
use crate::error::Result;
use crate::kernels::{AttentionParams, Params as _};

/// What a call launches.
#[derive(Debug, Clone)]
pub struct Plan {
    launches: Vec<Launch>,
    /// In place of the last, for addresses that it can have.
    hopper: Option<Launch>,
    /// In place of the last, where keys or values do not begin at multiples of [`prefill::ALIGNMENT`].
    unaligned: Option<Launch>,
    workspace: Workspace,
    params: AttentionParams,
}

impl Plan {
    /// Plans attention over many queries a sequence: blocks of rows of one head.
    ///
    /// # Which kernel
    /// On compute capability 9.0 that of `kernels/sm90`, by `wgmma` and tensor maps, where all of this holds; else, and on every
    /// other device, that of `kernels/sm80`:
    ///
    /// | | `kernels/sm90` |
    /// |---|---|
    /// | `head_dim` | any |
    /// | tensors | dense, packed or in pages, with keys |
    /// | strides of q, k and v | multiples of 16 bytes, above 0 and below 2^40 bytes |
    /// | addresses of q, k and v | multiples of 16 |
    /// | `scale` | above 0 |
    ///
    /// Masks, windows, softcaps, horizons, slopes of any form, groups of heads, lengths, left padding and offsets may be any.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Strides`] or [`Error::Value`] for tensors that do not fit the layer, each other or the
    /// kernels' limits (2^30 rows a sequence, 2^31 blocks), and for a device that is too old or too small.
    pub fn prefill(attention: &Attention, call: &Call, device: &Device) -> Result<Self> {
        let sizes = Sizes::of(attention, call)?;
        let table = device.architecture()?.table();
        let (launches, unaligned) = prefill::launches(attention, table, call, &sizes, device)?;
        Ok(Self {
            hopper: match launches.len() {
                0 => None,
                n => hopper::launch(attention, call, &sizes, device, n > 1),
            },
            launches,
            unaligned,
            workspace: prefill::workspace(attention, table, &sizes),
            params: AttentionParams {
                tiles: prefill::tiles(attention, table, &sizes).unwrap_or(0) as i32,
                ..params(attention, call, &sizes)
            },
        })
    }

    /// Plans attention over few queries a sequence and many keys: keys and values are read once for all query heads that
    /// share them, by as many blocks as fill the device.
    ///
    /// For the same shapes the plan is the same, whatever the lengths, so that a graph can replay it.
    ///
    /// # Errors
    /// As [`Plan::prefill`].
    pub fn decode(attention: &Attention, call: &Call, device: &Device) -> Result<Self> {
        let sizes = Sizes::of(attention, call)?;
        let table = device.architecture()?.table();
        let splits = decode::splits(attention, table, &sizes, device);
        Self::decode_with_splits(attention, call, device, splits)
    }

    /// As [`Plan::decode`], with the keys of every sequence split in so many parts, of blocks of their own.
    ///
    /// # Errors
    /// As [`Plan::decode`], and [`Error::Value`] for no parts at all.
    pub fn decode_with_splits(
        attention: &Attention,
        call: &Call,
        device: &Device,
        splits: usize,
    ) -> Result<Self> {
        let sizes = Sizes::of(attention, call)?;
        let table = device.architecture()?.table();
        let (launches, workspace) =
            decode::launches(attention, table, call, &sizes, device, splits)?;
        Ok(Self {
            launches,
            hopper: None,
            unaligned: None,
            workspace,
            params: AttentionParams {
                splits: splits as i32,
                tiles: decode::tiles(attention, table, &sizes) as i32,
                ..params(attention, call, &sizes)
            },
        })
    }

    /// The launches, in order, where keys and values begin at multiples of 16 bytes. [`Plan::launches_at`] has those for any
    /// addresses: others of the same use may take the place of the last.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// The launches for tensors at these addresses, in order.
    pub fn launches_at(&self, addresses: &Addresses) -> Vec<&Launch> {
        let aligned = |address: u64| address.is_multiple_of(prefill::ALIGNMENT as u64);
        let mut launches: Vec<&Launch> = self.launches.iter().collect();
        let other = match (&self.hopper, &self.unaligned) {
            (Some(hopper), _) if hopper::takes(addresses) => Some(hopper),
            (_, Some(unaligned)) if !(aligned(addresses.k) && aligned(addresses.v)) => {
                Some(unaligned)
            }
            _ => None,
        };
        if let (Some(last), Some(other)) = (launches.last_mut(), other) {
            *last = other;
        }
        launches
    }

    /// Every launch that some addresses need.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = &Launch> {
        (self.launches.iter())
            .chain(&self.hopper)
            .chain(&self.unaligned)
    }

    /// The bytes that the plan needs on the device for results of its own. Calls that can run at the same time need one each.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes()
    }

    /// At least what [`Plan::prefill`] and [`Plan::decode`] need for every call of the layer with no more sequences, queries a
    /// sequence and keys a sequence than these; of a paged cache, keys are the rows that the block table has room for, if the
    /// caller gives no lower bound.
    pub fn workspace_bytes_up_to(
        attention: &Attention,
        device: &Device,
        max_batch: usize,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> u64 {
        let most = Sizes {
            batch: max_batch,
            seqlen_q: max_seqlen_q,
            seqlen_k: max_seqlen_k,
        };
        workspace::bytes_up_to(attention, device, &most)
    }

    /// The kernels' parameters for tensors at these addresses.
    pub fn params(&self, addresses: &Addresses) -> AttentionParams {
        // Each part follows the one before; one that is not there has no address.
        let mut end = addresses.workspace;
        let mut part = |bytes: u64| {
            let start = end;
            end += bytes;
            if bytes > 0 { start } else { 0 }
        };
        let Workspace {
            out,
            lse,
            live,
            centres,
            radii,
            order,
        } = self.workspace;
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
            offset: addresses.offset,
            block_table: addresses.block_table,
            report: addresses.report,
            partial_out: part(out),
            partial_lse: part(lse),
            live: part(live),
            centres: part(centres),
            radii: part(radii),
            order: part(order),
            cache_centres: addresses.centres,
            page_radii: addresses.radii,
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
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            launch::run(
                executor,
                self.launches_at(addresses),
                self.params(addresses).bytes(),
            )
        }
    }
}
