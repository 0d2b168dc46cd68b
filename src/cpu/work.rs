//! Which rows and keys are worked on at once.

use std::ops::Range;

use crate::problem::Sequence;

/// Blocks of at most so many rows are computed key by key: decoding.
pub(super) const FEW: usize = 4;

/// One unit of work: some query rows of the heads that share a key head, against some keys.
///
/// Row `r` of a sequence and key head is token `r / group` of query head `head_k * group + r % group`, so that heads
/// sharing keys share each tile that was read and converted.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) sequence: Sequence,
    pub(super) head_k: usize,
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Block {
    /// The token and the query head of row `r` of the block.
    pub(super) fn row(&self, group: usize, r: usize) -> (usize, usize) {
        let r = self.rows.start + r;
        (r / group, self.head_k * group + r % group)
    }
}
