//! The compiled CUDA kernels and their parameters.
//!
//! They are data here: nothing of this module needs a driver or a GPU.

#[rustfmt::skip]
mod params;

pub use params::{AppendParams, AttentionParams, TensorStrides};

/// What nvcc made of one kernel file.
#[derive(Debug, Clone, Copy)]
pub struct Embedded {
    /// The file's name, without `.cu`.
    pub name: &'static str,
    /// Machine code for the architectures of the build, and PTX for later ones: what a driver loads.
    pub fatbin: &'static [u8],
    /// The PTX text for compute_80: what an emulator loads.
    #[cfg(feature = "ptx")]
    pub ptx: &'static str,
    /// What ptxas said of registers, shared memory and spills.
    #[cfg(feature = "ptx")]
    pub ptxas: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The kernels of a file.
pub fn named(name: &str) -> Option<&'static Embedded> {
    ALL.iter().find(|kernel| kernel.name == name)
}

const _: () = assert!(
    size_of::<AttentionParams>() == 20 * 8 + 4 * size_of::<TensorStrides>() + 4 * 8 + 18 * 4
        && size_of::<AppendParams>() == 7 * 8 + 4 * size_of::<TensorStrides>() + 8 + 4 * 4,
    "no padding, so every byte is initialised"
);

/// What a kernel takes: its only parameter.
pub trait Params: sealed::Sealed {
    /// The parameter as a launch takes it.
    fn bytes(&self) -> &[u8];
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! params {
    ($($type:ty),*) => {$(
        impl sealed::Sealed for $type {}
        impl Params for $type {
            fn bytes(&self) -> &[u8] {
                // SAFETY: the struct is `repr(C)` and has no padding.
                unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
            }
        }
    )*};
}
params!(AttentionParams, AppendParams);
