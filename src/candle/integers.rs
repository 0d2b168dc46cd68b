//! Tensors of integers: lengths, pages and slots, in whatever type an engine has them.

use candle_core::{DType, Result, Tensor};

use super::error::bad_dtype;
use super::memory::to_host;
use crate::error::{Error, value};

/// Whether it is `DType::I32`, which candle has since 0.9.2.
pub(super) fn is_i32(dtype: DType) -> bool {
    dtype.as_str() == "i32"
}

pub(super) fn check_integers(
    argument: &'static str,
    tensor: &Tensor,
) -> std::result::Result<(), Error> {
    let dtype = tensor.dtype();
    match matches!(dtype, DType::U32 | DType::I64) || is_i32(dtype) {
        true => Ok(()),
        false => Err(bad_dtype(argument, dtype, "dtype U32, I32 or I64")),
    }
}

/// The values of a tensor on the CPU.
pub(super) fn read(tensor: &Tensor) -> Result<Vec<i64>> {
    to_host(&tensor.to_dtype(DType::I64)?)
}

/// The same, which must be those of an i32.
pub(super) fn read_i32(argument: &'static str, tensor: &Tensor) -> Result<Vec<i32>> {
    let values = read(tensor)?;
    let values = values.iter().enumerate().map(|(at, &found)| {
        i32::try_from(found).map_err(|_| {
            let expected = match found < 0 {
                true => format!("at least {}", i32::MIN),
                false => format!("at most {}", i32::MAX),
            };
            value(argument, format!("{found} at index {at}"), expected).into()
        })
    });
    values.collect()
}

/// Page numbers. Those that are none of an i32 become -1, which no page is: whether one is needed is not known here.
pub(super) fn read_pages(block_table: &Tensor) -> Result<Vec<i32>> {
    let pages = read(block_table)?.into_iter();
    Ok(pages
        .map(|page| i32::try_from(page).unwrap_or(-1))
        .collect())
}
