//! The internal form of a kernel: typed operations with resolved operands, and the registers they name.
//!
//! Decoding makes it and execution runs it; this module knows neither.

mod kernel;
mod op;
mod operand;
pub(crate) mod regs;

pub use kernel::ParamInfo;
pub(crate) use kernel::{Inst, Kernel, Meta, NONE};
pub(crate) use op::*;
pub(crate) use operand::{Addr, Const, LaneMask, MemSpace, Order, Row};
