//! A block of a decoder: attention and the feed-forward layers.

use anyhow::Result;
use candle_core::{DType, IndexOp, Tensor};
use candle_nn::{LayerNorm, Module};
use flash_alibi::Attention;
use flash_alibi::candle::{self, Lengths};

use super::Watch;
use super::cache::{KvCache, Step};
use crate::weights::Projection;

/// Where q, k and v lie in the fused projection.
#[derive(Clone, Copy)]
pub enum Fused {
    /// `[heads_k, group + 2, head_dim]`, the queries of a key head before it and its values: BLOOM and Falcon.
    WithinHeads,
    /// `[3, heads, head_dim]`: MPT.
    AcrossHeads,
}

impl Fused {
    /// `[total, heads, head_dim]` each: views, unless several queries share each of several key heads.
    fn parts(self, qkv: &Tensor, attention: &Attention) -> Result<(Tensor, Tensor, Tensor)> {
        let (heads, heads_k) = (attention.heads_q(), attention.heads_k());
        let (group, head_dim) = (attention.group(), attention.head_dim());
        Ok(match self {
            Self::WithinHeads => {
                let qkv = qkv.reshape(((), heads_k, group + 2, head_dim))?;
                let q = match (heads_k, group) {
                    (1, _) => qkv.i((.., 0, ..group))?,
                    (_, 1) => qkv.i((.., .., 0))?,
                    _ => qkv.i((.., .., ..group))?.reshape(((), heads, head_dim))?,
                };
                (q, qkv.i((.., .., group))?, qkv.i((.., .., group + 1))?)
            }
            Self::AcrossHeads => {
                let qkv = qkv.reshape(((), 3, heads, head_dim))?;
                (qkv.i((.., 0))?, qkv.i((.., 1))?, qkv.i((.., 2))?)
            }
        })
    }
}

/// Between the feed-forward layers.
#[derive(Clone, Copy)]
pub enum Activation {
    Gelu,
    GeluTanh,
}

/// What the feed-forward layers read.
#[derive(Clone, Copy)]
pub enum Feed {
    /// The sum of the block's input and attention's output.
    AfterAttention,
    /// The block's input, as attention does.
    BesideAttention,
}

/// The weights of a block and how they are used.
pub struct Block {
    pub norm_1: LayerNorm,
    pub qkv: Projection,
    pub fused: Fused,
    /// The largest magnitude of q, k and v.
    pub clip_qkv: Option<f64>,
    pub out: Projection,
    /// Absent where the feed-forward layers share the first.
    pub norm_2: Option<LayerNorm>,
    pub up: Projection,
    pub activation: Activation,
    pub down: Projection,
    pub feed: Feed,
    /// Whether the residual is taken after the norm, as some BLOOM variants do.
    pub residual_after_norm: bool,
}

impl Block {
    /// `[total, hidden]` of new tokens, after their keys and values went to the cache.
    pub fn forward(
        &self,
        x: &Tensor,
        attention: &Attention,
        pools: &mut KvCache,
        step: &Step,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let normed = self.norm_1.forward(x)?;
        let attended = self.attend(&normed, attention, pools, step, watch)?;
        let residual = if self.residual_after_norm { &normed } else { x };
        let sum = (residual + attended)?;
        let fed = match self.feed {
            Feed::AfterAttention => &sum,
            Feed::BesideAttention => x,
        };
        let normed = match &self.norm_2 {
            Some(norm) => norm.forward(fed)?,
            None => normed,
        };
        let residual = if self.residual_after_norm {
            &normed
        } else {
            &sum
        };
        let up = self.up.forward(&normed)?;
        let up = match self.activation {
            Activation::Gelu => up.gelu_erf()?,
            Activation::GeluTanh => up.gelu()?,
        };
        Ok((residual + self.down.forward(&up)?)?)
    }

    fn attend(
        &self,
        x: &Tensor,
        attention: &Attention,
        pools: &mut KvCache,
        step: &Step,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let hidden = attention.heads_q() * attention.head_dim();
        let mut qkv = self.qkv.forward(x)?;
        if let Some(clip) = self.clip_qkv {
            qkv = qkv.clamp(-clip, clip)?;
        }
        let qkv = qkv.to_dtype(pools.k.dtype())?;
        let (q, k, v) = self.fused.parts(&qkv, attention)?;
        watch(&q, &k, &v)?;
        let centres = match &pools.centres {
            Some(centres) => centres,
            None => pools.centres.insert(k.to_dtype(DType::F32)?.mean(0)?),
        };
        let radii = &pools.radii;
        candle::append_with_radii(
            &k,
            &v,
            &pools.k,
            &pools.v,
            &step.slot_mapping,
            centres,
            radii,
        )?;
        let lengths = Lengths::paged(&step.block_table, &step.seqused_k)
            .varlen_q(&step.seqlens_q, step.max_seqlen_q)
            .radii(centres, radii);
        let (out, _) = candle::attend(attention, &q, &pools.k, &pools.v, lengths)?;
        self.out
            .forward(&out.reshape(((), hidden))?.to_dtype(x.dtype())?)
    }
}
