//! Conformance: tables of single instructions against values worked out from the PTX ISA
//! (NVIDIA, "Parallel Thread Execution ISA"). "ISA: ..." in a comment names the section that a
//! value comes from by its title, since the numbers change between versions.

// Bits and constants as the ISA writes them.
#![allow(clippy::excessive_precision, clippy::manual_rotate, clippy::precedence)]

mod harness;

mod atomics;
mod bulk;
mod cluster;
mod collective;
mod convert;
mod copies;
mod float;
mod flow;
mod half_precision;
mod integer;
mod logic;
mod matrix;
mod mbarrier;
mod memory;
mod unknown;
mod wgmma;
