//! Layers that are made of a checkpoint's tensors.

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::{LayerNorm, Linear};

use crate::checkpoint::Tensors;

/// The norm of features whose tensors are `name.weight` and, with a bias, `name.bias`.
pub fn layer_norm(
    tensors: &Tensors,
    name: &str,
    features: usize,
    epsilon: f64,
    bias: bool,
) -> Result<LayerNorm> {
    let part = |part| tensors.get(&format!("{name}.{part}"), &[features]);
    let weight = part("weight")?;
    Ok(match bias {
        true => LayerNorm::new(weight, part("bias")?, epsilon),
        false => LayerNorm::new_no_bias(weight, epsilon),
    })
}

/// A linear layer, its weights `[features, outputs]`: in this order candle's product reads them in place.
pub struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Projection {
    /// From `name.weight` and, with a bias, `name.bias`.
    pub fn load(
        tensors: &Tensors,
        name: &str,
        outputs: usize,
        features: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = tensors.get(&format!("{name}.weight"), &[outputs, features])?;
        let bias = bias
            .then(|| tensors.get(&format!("{name}.bias"), &[outputs]))
            .transpose()?;
        Self::new(&Linear::new(weight, bias))
    }

    pub fn new(linear: &Linear) -> Result<Self> {
        Ok(Self {
            weight: linear.weight().t()?.contiguous()?,
            bias: linear.bias().cloned(),
        })
    }

    /// `[rows, outputs]` from `[rows, features]`. candle multiplies a single row by a routine of its own, which sums in
    /// another order: the row comes twice, so that its result is the same in any batch.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let out = match x.dim(0)? {
            1 => x.repeat((2, 1))?.matmul(&self.weight)?.narrow(0, 0, 1)?,
            _ => x.matmul(&self.weight)?,
        };
        Ok(match &self.bias {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        })
    }
}
