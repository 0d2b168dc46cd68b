//! Executes the PTX text that `nvcc` emits on the CPU, instruction by instruction, with a
//! sanitizer's checks.
//!
//! ```
//! use ptx_emulator::{LaunchConfig, Memory, Module, Params};
//!
//! let ptx = "
//! .version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry double(.param .u64 p) {
//!     .reg .b32 %r<3>;
//!     .reg .b64 %rd<4>;
//!     ld.param.u64 %rd1, [p];
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd2, %r1, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.u32 %r2, [%rd3];
//!     add.u32 %r2, %r2, %r2;
//!     st.global.u32 [%rd3], %r2;
//!     ret;
//! }";
//! let module = Module::parse(ptx)?;
//! let memory = Memory::new();
//! let data = memory.alloc_from(&[1u32, 2, 3, 4])?;
//! let config = LaunchConfig::new(1, 4);
//! let report = module.launch(&memory, "double", &config, Params::new().arg(data).bytes())?;
//! assert_eq!(memory.read_vec::<u32>(data, 4)?, [2, 4, 6, 8]);
//! println!("{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is checked
//!
//! Every access to memory is checked against the exact bounds of its allocation, for its
//! alignment, and for reading bytes that nobody wrote. Asynchronous copies land as late as the
//! waits allow. Warps run in seeded random order, and a happens-before race detector watches
//! shared memory within a block and global memory between blocks. See [`Checks`].
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod ast;
mod decode;
mod exec;
mod fault;
mod lexer;
mod memory;
mod module;
mod numeric;
mod parser;
mod report;

pub use fault::{AccessKind, Fault, FaultKind, Place, Space, Waiter};
pub use memory::{DevicePtr, Memory, MemoryError, Plain};
pub use module::{Checks, LaunchConfig, Module, ParamBytes, ParamValue, Params};
pub use parser::ParseError;
pub use report::{Class, Count, Report};
