//! A block of an encoder: attention and the gated feed-forward layers, each followed by its norm.

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::{LayerNorm, Module};
use flash_alibi::Attention;
use flash_alibi::candle::{self, Lengths};

use crate::backend::attention_dtype;
use crate::weights::Projection;

/// Where texts begin that lie one after the other.
pub struct Packed {
    seqlens: Tensor,
    longest: usize,
}

impl Packed {
    pub fn new(texts: &[&[u32]], device: &Device) -> Result<Self> {
        let mut seqlens = vec![0];
        let mut total = 0;
        for text in texts {
            total += u32::try_from(text.len())?;
            seqlens.push(total);
        }
        Ok(Self {
            seqlens: Tensor::new(seqlens, device)?,
            longest: texts.iter().map(|text| text.len()).max().unwrap_or(0),
        })
    }

    fn lengths(&self) -> Lengths<'_> {
        let (seqlens, longest) = (&self.seqlens, self.longest);
        Lengths::varlen(seqlens, seqlens, longest, longest)
    }
}

/// The weights of a block and how they are used.
pub struct Block {
    /// Queries, keys and values, one after the other.
    pub qkv: Projection,
    /// Norms of queries and of keys, over all heads.
    pub qk_norms: Option<[LayerNorm; 2]>,
    pub out: Projection,
    pub norm: LayerNorm,
    /// Of the block's input added once more to attention's normalised output.
    pub second_norm: Option<LayerNorm>,
    /// The half of the first feed-forward layer that goes through the activation, and the half that it multiplies.
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
    pub feed_norm: LayerNorm,
}

impl Block {
    /// `[total, hidden]` of packed texts.
    pub fn forward(&self, x: &Tensor, attention: &Attention, packed: &Packed) -> Result<Tensor> {
        let attended = self.attend(x, attention, packed)?;
        let mut normed = self.norm.forward(&(attended + x)?)?;
        if let Some(norm) = &self.second_norm {
            normed = norm.forward(&(normed + x)?)?;
        }
        let gate = self.gate.forward(&normed)?.gelu_erf()?;
        let fed = self.down.forward(&(gate * self.up.forward(&normed)?)?)?;
        Ok(self.feed_norm.forward(&(fed + normed)?)?)
    }

    fn attend(&self, x: &Tensor, attention: &Attention, packed: &Packed) -> Result<Tensor> {
        let (heads, head_dim) = (attention.heads_q(), attention.head_dim());
        let hidden = heads * head_dim;
        let dtype = attention_dtype(x.device());
        let qkv = self.qkv.forward(x)?;
        let (q, k, v) = {
            let views = qkv.to_dtype(dtype)?.reshape(((), 3 * heads, head_dim))?;
            let part = |i| views.narrow(1, i * heads, heads);
            (part(0)?, part(1)?, part(2)?)
        };
        let (q, k) = match &self.qk_norms {
            None => (q, k),
            Some([of_q, of_k]) => {
                let normed = |norm: &LayerNorm, i| -> Result<Tensor> {
                    let features = qkv.narrow(1, i * hidden, hidden)?.contiguous()?;
                    let normed = norm.forward(&features)?.to_dtype(dtype)?;
                    Ok(normed.reshape(((), heads, head_dim))?)
                };
                (normed(of_q, 0)?, normed(of_k, 1)?)
            }
        };
        let (out, _) = candle::attend(attention, &q, &k, &v, packed.lengths())?;
        self.out
            .forward(&out.reshape(((), hidden))?.to_dtype(x.dtype())?)
    }
}
