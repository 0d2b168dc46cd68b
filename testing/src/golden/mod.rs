//! Golden files: inputs and exact results of one attention problem each, computed in f64 by an independent program.
//!
//! A golden file is a safetensors file with the tensors `q`, `k`, `v` (all f16, bf16 or f32; `[batch, seqlen, heads,
//! head_dim]`), `slopes` (`[heads_q]` or `[batch, heads_q]`), `out`, `lse` (`[batch, heads_q, seqlen_q]`) and, where a batch has
//! them, `seqused_k`, `leftpad_k` and `offset` (i32, `[batch]`). Its metadata entry `case` is a JSON object: `name`, `causal`
//! (default true), `window` (`[left, right]`; a negative number leaves that side open), `softcap`, `scale` (default
//! `1/sqrt(head_dim)`), `bias` (`linear`), and the sizes, which must agree with the tensors. What else a file says may change
//! what it means, and so is an error.

mod check;
mod file;
#[cfg(feature = "cuda")]
mod run;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flash_alibi::{Attention, Inputs, Mask, Slopes, View};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::accuracy::{Accuracy, Sequence, low_precision};
use file::{floats, integers, tensor};

pub use check::{Backend, Check};
pub use file::Stored;
#[cfg(feature = "cuda")]
pub use run::Runner;

/// One golden file.
#[derive(Debug)]
pub enum Golden {
    /// Of f16.
    F16(Case<f16>),
    /// Of bf16.
    Bf16(Case<bf16>),
    /// Of f32.
    F32(Case<f32>),
}

/// A problem and its exact result.
#[derive(Debug)]
pub struct Case<T> {
    /// As the file says, or its own name.
    pub name: String,
    /// The layer.
    pub attention: Attention,
    q: Tensor<T>,
    k: Tensor<T>,
    v: Tensor<T>,
    seqused_k: Option<Vec<i32>>,
    leftpad_k: Option<Vec<i32>>,
    offset: Option<Vec<i32>>,
    /// As q.
    pub out: Vec<f32>,
    /// `[batch, heads_q, seqlen_q]`.
    pub lse: Vec<f32>,
}

/// What a backend made of a case; laid out as [`Case::out`] and [`Case::lse`].
pub struct Computed {
    /// As [`Case::out`].
    pub out: Vec<f64>,
    /// As [`Case::lse`].
    pub lse: Vec<f64>,
}

/// A tensor without gaps.
#[derive(Debug, Clone)]
struct Tensor<T> {
    data: Vec<T>,
    shape: [usize; 4],
}

impl<T> Tensor<T> {
    fn view(&self) -> flash_alibi::Result<View<'_, T>> {
        View::new(&self.data, &self.shape)
    }
}

/// The tensors that a file may have.
const TENSORS: [&str; 9] = [
    "q",
    "k",
    "v",
    "slopes",
    "out",
    "lse",
    "seqused_k",
    "leftpad_k",
    "offset",
];

/// The metadata entry `case`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: Option<String>,
    causal: Option<bool>,
    window: Option<[i64; 2]>,
    softcap: Option<f32>,
    scale: Option<f32>,
    batch: Option<usize>,
    seqlen_q: Option<usize>,
    seqlen_k: Option<usize>,
    heads_q: Option<usize>,
    heads_k: Option<usize>,
    head_dim: Option<usize>,
    seqused_k: Option<Vec<i32>>,
    leftpad_k: Option<Vec<i32>>,
    offset: Option<Vec<i32>>,
    bias: Option<String>,
    dtype: Option<String>,
    // These only say how the inputs were made.
    #[serde(rename = "model")]
    _model: Option<IgnoredAny>,
    #[serde(rename = "seed")]
    _seed: Option<IgnoredAny>,
    #[serde(rename = "slopes")]
    _slopes: Option<IgnoredAny>,
    #[serde(rename = "bias_max")]
    _bias_max: Option<IgnoredAny>,
    #[serde(rename = "amp")]
    _amp: Option<IgnoredAny>,
    #[serde(rename = "far_needle")]
    _far_needle: Option<IgnoredAny>,
    #[serde(rename = "needle_gain")]
    _needle_gain: Option<IgnoredAny>,
}

/// The golden files that `paths` name: files as they are, and all of a folder's `.safetensors`, by name.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let context = || format!("{}: cannot be read", path.display());
        if !fs::metadata(path).with_context(context)?.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in fs::read_dir(path).with_context(context)? {
            let entry = entry.with_context(context)?.path();
            if entry.extension().is_some_and(|e| e == "safetensors") {
                inside.push(entry);
            }
        }
        ensure!(
            !inside.is_empty(),
            "{}: no .safetensors file in this folder",
            path.display()
        );
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

impl Golden {
    /// Reads a file; errors name it.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Self::parse(&bytes, path)
            .with_context(|| format!("{}: malformed golden file", path.display()))
    }

    /// Reads the content of a file.
    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|e| anyhow!("not a complete safetensors file: {e}"))?;
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let description = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get("case"))
            .context("no entry `case` in the metadata")?;
        let description: Description =
            serde_json::from_str(description).context("metadata entry `case`")?;
        if let Some(unknown) = tensors
            .names()
            .into_iter()
            .find(|name| !TENSORS.contains(name))
        {
            bail!(
                "found a tensor `{unknown}`, expected only {}: not supported",
                TENSORS.join(", ")
            );
        }
        let name = match &description.name {
            Some(name) => name.clone(),
            None => path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        };
        Ok(match tensor(&tensors, "q")?.dtype() {
            Dtype::F16 => Self::F16(Case::new(name, &description, &tensors)?),
            Dtype::BF16 => Self::Bf16(Case::new(name, &description, &tensors)?),
            Dtype::F32 => Self::F32(Case::new(name, &description, &tensors)?),
            other => bail!("q: found type {other:?}, expected F16, BF16 or F32"),
        })
    }
}

impl<T: Stored> Case<T> {
    fn new(name: String, description: &Description, tensors: &SafeTensors) -> Result<Self> {
        let four = |name| -> Result<Tensor<T>> {
            let (data, shape) = floats(tensors, name)?;
            let shape = shape.try_into().map_err(|shape| {
                anyhow!("{name}: found shape {shape:?}, expected [batch, seqlen, heads, head_dim]")
            })?;
            Ok(Tensor { data, shape })
        };
        let (q, k, v) = (four("q")?, four("k")?, four("v")?);
        let [batch, seqlen_q, heads_q, head_dim] = q.shape;
        let [_, seqlen_k, heads_k, _] = k.shape;
        for (what, stated, found) in [
            ("batch", description.batch, batch),
            ("seqlen_q", description.seqlen_q, seqlen_q),
            ("seqlen_k", description.seqlen_k, seqlen_k),
            ("heads_q", description.heads_q, heads_q),
            ("heads_k", description.heads_k, heads_k),
            ("head_dim", description.head_dim, head_dim),
        ] {
            let agrees = stated.is_none_or(|stated| stated == found);
            ensure!(
                agrees,
                "{what}: {found} in the tensors, {stated:?} in `case`"
            );
        }

        let dtype = description.dtype.as_deref().unwrap_or(T::NAME);
        ensure!(
            dtype == T::NAME,
            "dtype: {} in the tensors, {dtype} in `case`",
            T::NAME
        );
        let bias = description.bias.as_deref().unwrap_or("linear");
        ensure!(
            bias == "linear",
            "bias: found {bias}, expected linear: not supported"
        );

        let (slopes, slopes_shape) = floats::<f32>(tensors, "slopes")?;
        let slopes = match slopes_shape[..] {
            [_] => Slopes::per_head(&slopes),
            [batch, heads] => Slopes::per_batch_and_head(&slopes, batch, heads)?,
            _ => bail!(
                "slopes: found shape {slopes_shape:?}, expected [heads_q] or [batch, heads_q]"
            ),
        };
        let mut attention = Attention::new(heads_q, heads_k, head_dim).slopes(slopes);
        if !description.causal.unwrap_or(true) {
            attention = attention.mask(Mask::Bidirectional);
        }
        if let Some([left, right]) = description.window {
            let side = |reach: i64| usize::try_from(reach).ok(); // Negative: open.
            attention = attention.window(side(left), side(right));
        }
        if let Some(softcap) = description.softcap {
            attention = attention.softcap(softcap);
        }
        if let Some(scale) = description.scale {
            attention = attention.scale(scale);
        }

        let lengths = |name, stated: &Option<Vec<i32>>| -> Result<Option<Vec<i32>>> {
            let found = match tensors.tensor(name) {
                Ok(tensor) => Some(integers(&tensor, name)?),
                Err(_) => None,
            };
            let agrees = stated.is_none() || *stated == found;
            ensure!(
                agrees,
                "{name}: {found:?} in the tensors, {stated:?} in `case`"
            );
            Ok(found)
        };
        let (out, out_shape) = floats::<f32>(tensors, "out")?;
        ensure!(
            out_shape == q.shape,
            "out: found shape {out_shape:?}, expected {:?}",
            q.shape
        );
        let (lse, lse_shape) = floats::<f32>(tensors, "lse")?;
        let expected = [batch, heads_q, seqlen_q];
        ensure!(
            lse_shape == expected,
            "lse: found shape {lse_shape:?}, expected {expected:?}"
        );
        Ok(Self {
            name,
            attention: attention.build()?,
            q,
            k,
            v,
            seqused_k: lengths("seqused_k", &description.seqused_k)?,
            leftpad_k: lengths("leftpad_k", &description.leftpad_k)?,
            offset: lengths("offset", &description.offset)?,
            out,
            lse,
        })
    }

    /// The same queries after so many keys: those of each sequence, and before them the same again and again. There are no
    /// exact results of this: `out` and `lse` are zero.
    pub fn with_context(&self, attention: Attention, seqlen_k: usize) -> Self {
        let [batch, _, heads, head_dim] = self.k.shape;
        let repeated = |of: fn(Sequence<T>) -> Vec<T>| {
            let mut data = Vec::new();
            for b in 0..batch {
                let rows = of(self.sequence(b));
                let rows: Vec<&[T]> = rows.chunks(heads * head_dim).collect();
                let skipped = rows.len() - seqlen_k % rows.len();
                let repeated = rows.iter().cycle().skip(skipped).take(seqlen_k);
                data.extend(repeated.copied().flatten());
            }
            Tensor {
                data,
                shape: [batch, seqlen_k, heads, head_dim],
            }
        };
        // Offsets move with the keys.
        let shifted = |b| {
            let sequence = self.sequence(b);
            let before = seqlen_k as i64 - sequence.seqlen_k as i64;
            i32::try_from(sequence.offset + before).expect("the keys are few")
        };
        Self {
            name: self.name.clone(),
            attention,
            q: self.q.clone(),
            k: repeated(|sequence| sequence.k),
            v: repeated(|sequence| sequence.v),
            seqused_k: None,
            leftpad_k: None,
            offset: self
                .offset
                .is_some()
                .then(|| (0..batch).map(shifted).collect()),
            out: vec![0.0; self.out.len()],
            lse: vec![0.0; self.lse.len()],
        }
    }

    /// The largest finite value.
    pub fn largest_value(&self) -> f64 {
        let values = self.v.data.iter().map(|x| f64::from(x.to_f32().abs()));
        values.filter(|x| x.is_finite()).fold(0.0, f64::max)
    }

    /// The inputs as the crate takes them.
    pub fn inputs(&self) -> Result<Inputs<'_, T>> {
        let mut inputs = Inputs::new(self.q.view()?, self.k.view()?, self.v.view()?);
        if let Some(lengths) = &self.seqused_k {
            inputs = inputs.seqused_k(lengths);
        }
        if let Some(lengths) = &self.leftpad_k {
            inputs = inputs.leftpad_k(lengths);
        }
        if let Some(offset) = &self.offset {
            inputs = inputs.offset(offset);
        }
        Ok(inputs)
    }

    /// Measures a result. The inputs must be ones that the crate accepts: this relies on their shapes and lengths.
    pub fn judge(&self, computed: &Computed) -> Accuracy {
        let mut accuracy = Accuracy::new::<T>();
        for (&x, &reference) in computed.lse.iter().zip(&self.lse) {
            accuracy.add_lse(x, reference.into());
        }
        let [batch, seqlen_q, heads_q, head_dim] = self.q.shape;
        let size = seqlen_q * heads_q * head_dim;
        for b in 0..batch {
            let low = low_precision(&self.attention, &self.sequence(b));
            let out = computed.out[b * size..].iter().zip(&self.out[b * size..]);
            for ((&x, &reference), low) in out.zip(low) {
                accuracy.add_out(x, low.into(), reference.into());
            }
        }
        accuracy
    }

    /// Sequence `b` without its padding. Left padding moves queries and keys alike: distances stay the same.
    fn sequence(&self, b: usize) -> Sequence<T> {
        let rows = |tensor: &Tensor<T>, first: usize, end: usize| {
            let [_, seqlen, heads, head_dim] = tensor.shape;
            let row = heads * head_dim;
            tensor.data[(b * seqlen + first) * row..(b * seqlen + end) * row].to_vec()
        };
        let length = |lengths: &Option<Vec<i32>>| lengths.as_ref().map(|n| n[b] as usize);
        let first = length(&self.leftpad_k).unwrap_or(0);
        let end = length(&self.seqused_k).unwrap_or(self.k.shape[1]);
        let seqlen_q = self.q.shape[1];
        let heads_q = self.attention.heads_q();
        let offset = match &self.offset {
            Some(offset) => offset[b].into(),
            None => end as i64 - seqlen_q as i64,
        };
        Sequence {
            seqlen_q,
            seqlen_k: end - first,
            offset: offset - first as i64,
            q: rows(&self.q, 0, seqlen_q),
            k: rows(&self.k, first, end),
            v: rows(&self.v, first, end),
            slopes: (0..heads_q)
                .map(|h| self.attention.slopes().get(b, h))
                .collect(),
        }
    }
}
