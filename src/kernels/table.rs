//! The tables of kernels, as the build reads them from `kernels/<architecture>/kernels.def`: a type for each macro, with a field
//! for each column, and a table for each architecture: a [`Table`] of the oldest.

// Some columns matter to the kernels alone.
#![allow(dead_code)]

use super::{Architecture, Dtype};

/// A kernel: the file that has it, its name, and the threads of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) file: &'static str,
    pub(crate) name: &'static str,
    pub(crate) threads: u32,
}

/// One for each type of elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PerElement<T> {
    f16: T,
    bf16: T,
}

impl<T> PerElement<T> {
    pub(crate) fn of(&self, dtype: Dtype) -> &T {
        match dtype {
            Dtype::F16 => &self.f16,
            Dtype::Bf16 => &self.bf16,
        }
    }
}

/// One for each thing that a launch of the prefill kernel can be known to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PerVariant<T> {
    /// Keys and values in one piece and aligned, and no horizon.
    pub(crate) dense: T,
    /// The same with a horizon.
    pub(crate) horizon: T,
    /// Anything: pages, rows that are not aligned, with or without a horizon.
    pub(crate) any: T,
}

/// One for all keys, and one for those that a horizon keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PerReach<T> {
    pub(crate) prefill: T,
    pub(crate) horizon: T,
}

include!(concat!(env!("OUT_DIR"), "/tables.rs"));
