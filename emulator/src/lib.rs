#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]
// Lane loops over several rows at once read best by index, and vectorise so.
#![allow(clippy::needless_range_loop)]

mod config;
mod decode;
mod error;
mod exec;
mod fp;
mod ir;
pub mod matrix_descriptor;
mod memory;
mod module;
mod ptx;
mod report;
mod swizzle;
pub mod tensor_map;
mod window;

pub use config::{Checks, Dim3, LaunchConfig, Params, Scalar};
pub use error::{Access, Fault, FaultKind, MemoryError, ParseError, Place, Space, Waiter};
pub use ir::ParamInfo;
pub use memory::{DevicePtr, Memory};
pub use module::{KernelInfo, Module};
pub use report::{Class, Counters, Line, Report};
pub use swizzle::Swizzle;
