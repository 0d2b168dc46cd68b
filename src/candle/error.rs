//! Errors that name arguments as the caller does.

use candle_core::{DType, DeviceLocation, Tensor};

use crate::error::{Error, value};

/// Checks that a tensor is where the first one is, which has this name.
pub(super) fn check_device(
    argument: &'static str,
    found: DeviceLocation,
    (device, name): (DeviceLocation, &str),
) -> std::result::Result<(), Error> {
    if found != device {
        let found = format!("a tensor on {found:?}");
        return Err(value(
            argument,
            found,
            format!("one on {device:?}, as {name}"),
        ));
    }
    Ok(())
}

/// What computes a call.
#[derive(Clone, Copy)]
pub(super) enum Backend {
    Cpu,
    #[cfg(feature = "candle-cuda")]
    Cuda,
}

impl Backend {
    /// That of a tensor's device.
    pub(super) fn of(argument: &'static str, tensor: &Tensor) -> std::result::Result<Self, Error> {
        match tensor.device().location() {
            DeviceLocation::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "candle-cuda")]
            DeviceLocation::Cuda { .. } => Ok(Self::Cuda),
            #[cfg(not(feature = "candle-cuda"))]
            DeviceLocation::Cuda { .. } => Err(no_path(
                argument,
                "CUDA",
                "a CPU tensor, or a build of flash-alibi with the feature `candle-cuda`",
            )),
            DeviceLocation::Metal { .. } => Err(no_path(argument, "Metal", "a CPU or CUDA tensor")),
        }
    }

    /// Checks that a tensor is of a type that the backend computes, and that others are of the same.
    pub(super) fn check_dtypes(
        self,
        (argument, tensor): (&'static str, &Tensor),
        others: &[(&'static str, &Tensor)],
    ) -> std::result::Result<(), Error> {
        let (allowed, expected): (&[DType], _) = match self {
            Self::Cpu => (
                &[DType::F16, DType::BF16, DType::F32],
                "dtype F16, BF16 or F32",
            ),
            #[cfg(feature = "candle-cuda")]
            Self::Cuda => (
                &[DType::F16, DType::BF16],
                "dtype F16 or BF16 on a CUDA device",
            ),
        };
        let dtype = tensor.dtype();
        if !allowed.contains(&dtype) {
            return Err(bad_dtype(argument, dtype, expected));
        }
        for &(other, tensor) in others {
            if tensor.dtype() != dtype {
                let expected = format!("dtype {dtype:?}, as {argument}");
                return Err(bad_dtype(other, tensor.dtype(), &expected));
            }
        }
        Ok(())
    }
}

fn no_path(argument: &'static str, device: &str, expected: &str) -> Error {
    value(argument, format!("a {device} tensor"), expected)
}

pub(super) fn bad_dtype(argument: &'static str, found: DType, expected: &str) -> Error {
    value(argument, format!("dtype {found:?}"), expected)
}

pub(super) fn bad_shape(argument: &'static str, found: &Tensor, expected: String) -> Error {
    Error::Shape {
        argument,
        found: found.dims().to_vec(),
        expected,
    }
}

/// What candle-flash-attn calls arguments of [`Inputs`](crate::Inputs).
pub(super) const NAMES: [(&str, &str); 2] =
    [("cu_seqlens_q", "seqlens_q"), ("cu_seqlens_k", "seqlens_k")];

/// Calls an argument what the caller calls it, also where another argument's error speaks of it.
pub(super) fn rename(mut error: Error, names: &[(&str, &'static str)]) -> Error {
    // A name without `_`, such as k, could be any letter: it is renamed where it ends a text as the argument to compare with.
    let mentions = |text: &mut String| {
        for (from, name) in names {
            if from.contains('_') {
                *text = text.replace(from, name);
            } else if let Some(start) = text.strip_suffix(&format!(", as {from}")) {
                *text = format!("{start}, as {name}");
            }
        }
    };
    let argument = match &mut error {
        Error::Value {
            argument,
            found,
            expected,
        } => {
            mentions(found);
            mentions(expected);
            argument
        }
        Error::Shape {
            argument, expected, ..
        }
        | Error::Strides {
            argument, expected, ..
        }
        | Error::Length {
            argument, expected, ..
        } => {
            mentions(expected);
            argument
        }
        Error::CacheFull { .. } => return error,
    };
    if let Some((_, name)) = names.iter().find(|(from, _)| from == argument) {
        *argument = name;
    }
    error
}

/// The same of an error that has become candle's.
pub(super) fn renamed<T>(
    result: candle_core::Result<T>,
    names: &[(&str, &'static str)],
) -> candle_core::Result<T> {
    result.map_err(|error| match error {
        candle_core::Error::Io(error) => match error.downcast() {
            Ok(InvalidInput(error)) => rename(error, names).into(),
            Err(error) => candle_core::Error::Io(error),
        },
        error => error,
    })
}

/// What gives a `candle_core::Error` the message and, as its source, the error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InvalidInput(#[source] Error);

/// The message is the error's, and so is the [source](std::error::Error::source). So `?` works on this crate's results
/// in functions that return candle's.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        // Of candle's variants, the one that keeps a caller's error as a source: `Wrapped` and `Msg` keep only its text.
        let kind = std::io::ErrorKind::InvalidInput;
        candle_core::Error::Io(std::io::Error::new(kind, InvalidInput(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What only a machine with other devices can reach through the public functions.
    #[test]
    fn devices_are_named() {
        let (cpu, cuda) = (DeviceLocation::Cpu, DeviceLocation::Cuda { gpu_id: 1 });
        assert_eq!(check_device("k", cuda, (cuda, "q")), Ok(()));
        assert_eq!(
            check_device("k", cpu, (cuda, "q")).unwrap_err().to_string(),
            "k: found a tensor on Cpu, expected one on Cuda { gpu_id: 1 }, as q"
        );
        assert_eq!(
            no_path("q", "Metal", "a CPU tensor").to_string(),
            "q: found a Metal tensor, expected a CPU tensor"
        );
    }
}
