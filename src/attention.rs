//! What a layer computes, described once when the model is loaded.

use crate::error::{Result, value};
use crate::horizon::Horizon;
use crate::slopes::Slopes;

/// Which keys a query may see, before windows and padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mask {
    /// Keys up to the query's own position: decoders.
    Causal,
    /// All keys; the bias is symmetric, `-slope * |pos - j|`: encoders such as Jina embeddings v2 and MosaicBERT.
    Bidirectional,
}

/// One attention layer: heads, scale, slopes, mask. Built once by [`Attention::new`] and [`AttentionBuilder::build`],
/// used by every call.
///
/// For query row `i` of sequence `b` and query head `h`, with `pos(i) = i + seqlen_k[b] - seqlen_q[b]`, or `i + offset[b]`
/// where a call gives an [`offset`](crate::Inputs::offset):
///
/// ```text
/// s(i,j)  = scale * dot(q[b,i,h], k[b,j,hk])          hk = h / (heads_q / heads_k)
/// s(i,j)  = softcap * tanh(s(i,j) / softcap)          when a softcap is set; before the bias, as FlashAttention-2 does
/// x(i,j)  = s(i,j) - slope[b,h] * |pos(i) - j|
/// lse(i)  = ln sum_j exp(x(i,j))                      over the visible keys j
/// out(i)  = sum_j exp(x(i,j) - lse(i)) * v[b,j,hk]
/// ```
///
/// A row that sees no key gives `out = 0` and `lse = -inf`.
///
/// ```
/// use flash_alibi::{Attention, Mask, Slopes};
///
/// let layer = Attention::new(16, 16, 64)          // BLOOM-560m: scale = 1/sqrt(64)
///     .slopes(Slopes::geometric(16))
///     .mask(Mask::Causal)
///     .build()?;
/// # Ok::<(), flash_alibi::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    heads_q: usize,
    heads_k: usize,
    head_dim: usize,
    scale: f32,
    softcap: Option<f32>,
    slopes: Slopes,
    mask: Mask,
    window_left: Option<usize>,
    window_right: Option<usize>,
    horizon: Horizon,
}

/// The largest head dimension on the CPU. On a CUDA device it is 256.
pub const MAX_HEAD_DIM: usize = 512;

/// The largest number of query heads: far beyond any model, so that a garbled number is an error and not an allocation.
const MAX_HEADS: usize = 1 << 16;

impl Attention {
    /// Starts the description of a layer of `heads_q` query heads sharing `heads_k` key and value heads (equal for
    /// multi-head attention, one for multi-query attention).
    ///
    /// Unless changed, the scale is `1/sqrt(head_dim)`, the slopes are [`Slopes::geometric`], the mask is causal, and the
    /// horizon certified at 2^-24.
    #[allow(clippy::new_ret_no_self)] // A layer exists only once it has been validated.
    pub fn new(heads_q: usize, heads_k: usize, head_dim: usize) -> AttentionBuilder {
        AttentionBuilder {
            heads_q,
            heads_k,
            head_dim,
            scale: None,
            softcap: None,
            slopes: None,
            mask: Mask::Causal,
            window: (None, None),
            horizon: Horizon::default(),
        }
    }

    /// The number of query heads.
    pub fn heads_q(&self) -> usize {
        self.heads_q
    }

    /// The number of key and value heads.
    pub fn heads_k(&self) -> usize {
        self.heads_k
    }

    /// The number of query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads_q / self.heads_k
    }

    /// The size of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// What the dot products are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The cap of the scores, if there is one.
    pub fn softcap(&self) -> Option<f32> {
        self.softcap
    }

    /// The slopes of the query heads.
    pub fn slopes(&self) -> &Slopes {
        &self.slopes
    }

    /// How many keys before its own position a query sees; `None`: all.
    pub fn window_left(&self) -> Option<usize> {
        self.window_left
    }

    /// How many keys after its own position a query sees; `None`: all. Zero under a causal mask.
    pub fn window_right(&self) -> Option<usize> {
        match self.mask {
            Mask::Causal => Some(0),
            Mask::Bidirectional => self.window_right,
        }
    }

    /// The mask.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// Whether keys that cannot change the result are left out.
    pub fn horizon(&self) -> Horizon {
        self.horizon
    }

    /// The same layer with another horizon: to compare, or to choose one for a model that is loaded.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) for a tolerance that is not above 0 and at most 0.5.
    pub fn with_horizon(mut self, horizon: Horizon) -> Result<Self> {
        horizon.check()?;
        self.horizon = horizon;
        Ok(self)
    }
}

/// A layer being described; see [`Attention::new`].
#[derive(Debug, Clone)]
#[must_use = "call build() to get the layer"]
pub struct AttentionBuilder {
    heads_q: usize,
    heads_k: usize,
    head_dim: usize,
    scale: Option<f32>,
    softcap: Option<f32>,
    slopes: Option<Slopes>,
    mask: Mask,
    window: (Option<usize>, Option<usize>),
    horizon: Horizon,
}

impl AttentionBuilder {
    /// Multiplies the dot products by `scale`; any finite number. The bias is not scaled.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Caps the scaled scores at `softcap * tanh(score / softcap)`, before the bias is added (FlashAttention-2's order;
    /// FlashInfer caps after the bias).
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// Sets the slopes of the query heads.
    pub fn slopes(mut self, slopes: Slopes) -> Self {
        self.slopes = Some(slopes);
        self
    }

    /// Sets the mask.
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// Lets a query at position `p` see only the keys `p - left ..= p + right`; `None` leaves a side open.
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        self.window = (left, right);
        self
    }

    /// Sets whether keys that cannot change the result are left out.
    pub fn horizon(mut self, horizon: Horizon) -> Self {
        self.horizon = horizon;
        self
    }

    /// Validates the description.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) for a head count of zero or above 65536, `heads_q` that is no multiple of `heads_k`, a
    /// `head_dim` that is not a multiple of 8 up to [`MAX_HEAD_DIM`], slopes for another head count, a scale, slope or
    /// softcap that is not finite (a softcap must also be positive), or a tolerance of the horizon that is not above 0 and
    /// at most 0.5.
    pub fn build(self) -> Result<Attention> {
        let Self {
            heads_q,
            heads_k,
            head_dim,
            ..
        } = self;
        if heads_k == 0 {
            return Err(value("heads_k", heads_k, "at least 1"));
        }
        if heads_q == 0 || heads_q % heads_k != 0 {
            let expected = format!("a positive multiple of heads_k = {heads_k}");
            return Err(value("heads_q", heads_q, expected));
        }
        if heads_q > MAX_HEADS {
            return Err(value("heads_q", heads_q, format!("at most {MAX_HEADS}")));
        }
        if head_dim == 0 || head_dim % 8 != 0 || head_dim > MAX_HEAD_DIM {
            let expected = format!("a multiple of 8 from 8 to {MAX_HEAD_DIM}");
            return Err(value("head_dim", head_dim, expected));
        }
        let scale = self.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        if !scale.is_finite() {
            return Err(value("scale", scale, "a finite number"));
        }
        if let Some(cap) = self.softcap
            && !(cap.is_finite() && cap > 0.0)
        {
            return Err(value("softcap", cap, "a positive finite number"));
        }
        let slopes = self.slopes.unwrap_or_else(|| Slopes::geometric(heads_q));
        if slopes.heads() != heads_q {
            let found = format!("{} heads", slopes.heads());
            return Err(value("slopes", found, format!("heads_q = {heads_q}")));
        }
        if let Some(at) = slopes.as_slice().iter().position(|s| !s.is_finite()) {
            let found = format!("{} at index {at}", slopes.as_slice()[at]);
            return Err(value("slopes", found, "finite numbers"));
        }
        self.horizon.check()?;
        Ok(Attention {
            heads_q,
            heads_k,
            head_dim,
            scale,
            softcap: self.softcap,
            slopes,
            mask: self.mask,
            window_left: self.window.0,
            window_right: self.window.1,
            horizon: self.horizon,
        })
    }
}
