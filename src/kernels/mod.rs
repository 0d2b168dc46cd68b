//! The compiled CUDA kernels, the table of them, and their parameters.
//!
//! They are data here: nothing of this module needs a driver or a GPU.

#[rustfmt::skip]
mod params;
mod table;

pub use params::{AppendParams, AttentionParams, CopyPagesParams, MergeStateParams, TensorStrides};
pub use table::NAMES;
pub(crate) use table::{
    Decode, Kernel, Live, PerElement, PerVariant, Prefill, SM90, Table, WgmmaPrefill,
};

/// What kernels are written for. A device runs those of the newest that it can run, and for what that one lacks those of the
/// older.
///
/// Another is added by a variant, after those that are older; by a folder of kernels with a table, as
/// `kernels/sm80/kernels.def` says; and where `Table` lacks what its launches need, in `src/plan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// `mma.sync` and `cp.async`: compute capability 8.0 and later.
    Sm80,
    /// `wgmma` and tensor maps: compute capability 9.0, and no later. Of attention over many queries alone.
    Sm90,
}

impl Architecture {
    /// From the oldest to the newest.
    pub const ALL: &[Self] = &[Self::Sm80, Self::Sm90];

    /// The oldest devices that run its kernels: major and minor.
    pub fn compute_capability(self) -> (u32, u32) {
        match self {
            Self::Sm80 => (8, 0),
            Self::Sm90 => (9, 0),
        }
    }

    /// Whether a device runs its kernels: major and minor.
    pub fn runs_on(self, compute_capability: (u32, u32)) -> bool {
        match self {
            Self::Sm80 => compute_capability >= self.compute_capability(),
            // What is special in it was given up afterwards.
            Self::Sm90 => compute_capability == self.compute_capability(),
        }
    }

    /// The kernels for everything: [`SM90`] has some in place of these.
    pub(crate) fn table(self) -> &'static Table {
        match self {
            Self::Sm80 | Self::Sm90 => &table::SM80,
        }
    }
}

/// The element types that kernels take. Another is added as `kernels/common/elements.cuh` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// All of them.
    pub const ALL: &[Self] = &[Self::F16, Self::Bf16];
}

/// What nvcc made of one kernel file.
#[derive(Debug, Clone, Copy)]
pub struct Embedded {
    /// What the kernels are written for.
    pub architecture: Architecture,
    /// The file's name with its folder, without `.cu`, such as `sm80/prefill`.
    pub name: &'static str,
    /// Machine code for the architectures of the build, and PTX for later ones: what a driver loads.
    pub fatbin: &'static [u8],
    /// The PTX text for compute_80, or for what the kernels need: what an emulator loads.
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
    size_of::<AttentionParams>() == 21 * 8 + 4 * size_of::<TensorStrides>() + 6 * 8 + 16 * 4
        && size_of::<AppendParams>() == 7 * 8 + 4 * size_of::<TensorStrides>() + 8 + 4 * 4
        && size_of::<CopyPagesParams>() == 4 * 8 + 2 * size_of::<TensorStrides>() + 8 + 4 * 4
        && size_of::<MergeStateParams>() == 4 * 8 + 2 * size_of::<TensorStrides>() + 4 * 4,
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
params!(
    AttentionParams,
    AppendParams,
    CopyPagesParams,
    MergeStateParams
);
