//! ALiBi's slopes: one number per query head, the penalty per position of distance.

use std::ops::Range;

use crate::error::{Error, Result, value};

/// The slopes of a layer, `[heads]` or `[batch, heads]`, in f32.
///
/// A positive slope is a penalty: head `h` adds `-slope[h] * |pos(i) - j|` to the score of query `i` and key `j`.
///
/// ```
/// use flash_alibi::Slopes;
///
/// let bloom = Slopes::geometric(8);
/// assert_eq!(bloom.get(0, 0), 0.5);
/// // This rank's share of a model sharded over two GPUs.
/// let shard = bloom.head_range(4..8)?;
/// assert_eq!(shard.get(0, 3), 1.0 / 256.0);
/// # Ok::<(), flash_alibi::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Slopes {
    /// Row-major `[batch.unwrap_or(1), heads]`.
    values: Vec<f32>,
    heads: usize,
    batch: Option<usize>,
}

impl Slopes {
    /// The slopes of Press et al. (2022), which BLOOM, Falcon, Baichuan and Jina use: `2^(-8k/n)` for `k = 1..=n` when
    /// the head count `n` is a power of two; otherwise those of the largest power of two `p < n`, followed by the first
    /// `n - p` of every other slope of `2p` heads.
    ///
    /// `heads` is the model's global count; take a rank's share with [`Slopes::head_range`].
    pub fn geometric(heads: usize) -> Self {
        Self::with_bias_max(heads, 8.0)
    }

    /// The same rule with MPT's `alibi_bias_max` in place of 8 (MPT-7B-StoryWriter uses 16).
    pub fn with_bias_max(heads: usize, alibi_bias_max: f64) -> Self {
        let power = |k: usize, n: usize| (-alibi_bias_max * k as f64 / n as f64).exp2() as f32;
        let p = match heads {
            0 => 0,
            n => 1 << n.ilog2(),
        };
        let values = (1..=p)
            .map(|k| power(k, p))
            .chain((0..heads - p).map(|i| power(2 * i + 1, 2 * p)))
            .collect();
        Self {
            values,
            heads,
            batch: None,
        }
    }

    /// No bias on any head: plain attention.
    pub fn zero(heads: usize) -> Self {
        Self::per_head(&vec![0.0; heads])
    }

    /// Given slopes, one per query head.
    pub fn per_head(slopes: &[f32]) -> Self {
        Self {
            values: slopes.to_vec(),
            heads: slopes.len(),
            batch: None,
        }
    }

    /// Given slopes, one per sequence and query head, row-major `[batch, heads]`.
    ///
    /// # Errors
    /// [`Error::Length`] unless there are `batch * heads` of them.
    pub fn per_batch_and_head(slopes: &[f32], batch: usize, heads: usize) -> Result<Self> {
        if batch.checked_mul(heads) != Some(slopes.len()) {
            return Err(Error::Length {
                argument: "slopes",
                found: slopes.len(),
                expected: format!("batch * heads = {batch} * {heads}"),
            });
        }
        Ok(Self {
            values: slopes.to_vec(),
            heads,
            batch: Some(batch),
        })
    }

    /// The slopes of a contiguous range of heads: a tensor-parallel rank's share of the model's.
    ///
    /// # Errors
    /// [`Error::Value`] when the range is not within the heads.
    pub fn head_range(&self, heads: Range<usize>) -> Result<Self> {
        if heads.start > heads.end || heads.end > self.heads {
            return Err(value(
                "heads",
                format!("{heads:?}"),
                format!("a range within 0..{}", self.heads),
            ));
        }
        Ok(Self {
            values: (0..self.batch.unwrap_or(1))
                .flat_map(|b| &self.values[b * self.heads..][heads.clone()])
                .copied()
                .collect(),
            heads: heads.len(),
            batch: self.batch,
        })
    }

    /// Every slope times `factor`. Falcon scales its bias with the scores: factor `1/sqrt(head_dim)`.
    ///
    /// transformers rounds Falcon's bias to bf16, so that beyond position 256 neighbouring keys get the same bias. Nothing is
    /// rounded so here: on long prompts results differ from those of transformers.
    pub fn scaled(mut self, factor: f32) -> Self {
        for slope in &mut self.values {
            *slope *= factor;
        }
        self
    }

    /// The number of query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// The batch size, when each sequence has slopes of its own.
    pub fn batch(&self) -> Option<usize> {
        self.batch
    }

    /// The slope of query head `head` in sequence `batch`.
    ///
    /// # Panics
    /// When `head` or, with slopes per sequence, `batch` is out of range.
    pub fn get(&self, batch: usize, head: usize) -> f32 {
        assert!(head < self.heads, "head {head} of {}", self.heads);
        self.values[self.batch.map_or(0, |_| batch * self.heads) + head]
    }

    /// All slopes, row-major `[heads]` or `[batch, heads]`.
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }
}
