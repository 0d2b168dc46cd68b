//! Conformance: tables of single instructions against values worked out from the PTX ISA
//! (NVIDIA, "Parallel Thread Execution ISA"). "ISA: ..." in a comment names the section that a
//! value comes from by its title, since the numbers change between versions.

mod harness;

mod atomics;
mod collective;
mod convert;
mod float;
mod half_precision;
mod integer;
mod logic;
mod matrix;
mod memory;
