//! What a plan needs on the device for results of its own.

use super::{Device, decode, prefill, sizes::Sizes};
use crate::attention::Attention;

/// What lies in a workspace, in bytes and in this order.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Workspace {
    /// The results of parts of the keys, in f32.
    pub(super) out: u64,
    pub(super) lse: u64,
    /// The lists of live tiles; 0 where nothing is left out.
    pub(super) live: u64,
    /// What the horizon knows of keys, where no cache does.
    pub(super) centres: u64,
    pub(super) radii: u64,
    pub(super) order: u64,
}

impl Workspace {
    pub(super) fn bytes(&self) -> u64 {
        let Self {
            out,
            lse,
            live,
            centres,
            radii,
            order,
        } = self;
        [out, lse, live, centres, radii, order]
            .iter()
            .fold(0, |sum: u64, &&bytes| sum.saturating_add(bytes))
    }
}

/// The product of 4 bytes and these numbers, or the most that there is.
pub(super) fn words(counts: &[usize]) -> u64 {
    (counts.iter()).fold(4, |bytes: u64, &n| bytes.saturating_mul(n as u64))
}

/// At least what any call needs whose sizes are no larger than these. It grows with each of them.
pub(super) fn bytes_up_to(attention: &Attention, device: &Device, most: &Sizes) -> u64 {
    // A device without kernels has no plans.
    device.architecture().map_or(0, |architecture| {
        let table = architecture.table();
        let prefill = prefill::workspace(attention, table, most).bytes();
        prefill.max(decode::workspace_up_to(attention, table, device, most))
    })
}
