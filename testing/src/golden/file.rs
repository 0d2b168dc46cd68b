//! Tensors of golden files.

use anyhow::{Result, anyhow, ensure};
use flash_alibi::cpu::Element;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

#[cfg(feature = "cuda")]
use super::run::Launch;

/// Without kernels, nothing is asked.
#[cfg(not(feature = "cuda"))]
pub trait Launch {}

#[cfg(not(feature = "cuda"))]
impl<T> Launch for T {}

/// An element type as golden files hold it.
pub trait Stored: Element + Launch {
    /// Its name in the files.
    const DTYPE: Dtype;
    /// Its name in Rust.
    const NAME: &'static str;
    /// An element from its bytes, of which there are as many as it has.
    fn from_le_bytes(bytes: &[u8]) -> Self;
}

macro_rules! stored {
    ($type:ty, $dtype:ident, $name:literal) => {
        impl Stored for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            const NAME: &'static str = $name;
            fn from_le_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("chunks of the type's size"))
            }
        }
    };
}
stored!(f16, F16, "f16");
stored!(bf16, BF16, "bf16");
stored!(f32, F32, "f32");

pub(super) fn tensor<'a>(tensors: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>> {
    tensors
        .tensor(name)
        .map_err(|_| anyhow!("no tensor `{name}`"))
}

pub(super) fn floats<T: Stored>(tensors: &SafeTensors, name: &str) -> Result<(Vec<T>, Vec<usize>)> {
    let tensor = tensor(tensors, name)?;
    ensure!(
        tensor.dtype() == T::DTYPE,
        "{name}: found type {:?}, expected {:?}",
        tensor.dtype(),
        T::DTYPE
    );
    let elements = tensor.data().chunks_exact(size_of::<T>());
    Ok((
        elements.map(T::from_le_bytes).collect(),
        tensor.shape().to_vec(),
    ))
}

pub(super) fn integers(tensor: &TensorView, name: &str) -> Result<Vec<i32>> {
    ensure!(
        tensor.dtype() == Dtype::I32,
        "{name}: found type {:?}, expected I32",
        tensor.dtype()
    );
    let elements = tensor.data().chunks_exact(4);
    Ok(elements
        .map(|x| i32::from_le_bytes(x.try_into().expect("chunks of 4")))
        .collect())
}
