//! A launch, and who carries it out.

use std::mem::offset_of;

use crate::error::{Result, value};
use crate::kernels::{Architecture, AttentionParams, Dtype, Embedded, Kernel, named};

/// One launch of one kernel.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Launch {
    /// The file that has the kernel, and with it the architecture.
    pub file: &'static Embedded,
    /// The kernel's name.
    pub kernel: &'static str,
    /// The number of blocks.
    pub grid: u32,
    /// The threads of a block.
    pub block: u32,
    /// The dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The blocks of a cluster; all 1 where there are no clusters. From compute capability 9.0 on.
    pub cluster: [u32; 3],
    /// What a tensor memory accelerator must be told before the launch, in the order in which the kernel takes the maps after
    /// its parameters. From compute capability 9.0 on.
    pub tensor_maps: Vec<TensorMap>,
}

/// How tiles of a tensor are copied by a tensor memory accelerator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Which tensor, and so where it begins.
    pub operand: Operand,
    /// The type of its elements.
    pub dtype: Dtype,
    /// The lengths of its dimensions, the contiguous one first: as many as it has.
    pub dims: Vec<u64>,
    /// The distances between the indices of every dimension but the first, in bytes.
    pub strides: Vec<u64>,
    /// The lengths of a tile.
    pub tile: Vec<u32>,
    /// How its rows lie in shared memory.
    pub swizzle: Swizzle,
}

/// A tensor of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Operand {
    Q,
    K,
    V,
    Out,
}

/// Over how many bytes the 16-byte chunks of a tile's rows are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Swizzle {
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

impl Operand {
    /// Where the tensor begins, by the parameter of the kernel that takes its map: [`AttentionParams`] as bytes.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) for bytes that are not as many.
    pub fn address(self, params: &[u8]) -> Result<u64> {
        if params.len() != size_of::<AttentionParams>() {
            let found = format!("{} bytes", params.len());
            let expected = format!("the {} of AttentionParams", size_of::<AttentionParams>());
            return Err(value("params", found, expected));
        }
        let at = match self {
            Self::Q => offset_of!(AttentionParams, q),
            Self::K => offset_of!(AttentionParams, k),
            Self::V => offset_of!(AttentionParams, v),
            Self::Out => offset_of!(AttentionParams, out),
        };
        let mut address = [0; 8];
        address.copy_from_slice(&params[at..at + 8]);
        Ok(u64::from_ne_bytes(address))
    }
}

impl Launch {
    /// Of so many blocks.
    pub(super) fn new(kernel: &Kernel, grid: u32) -> Self {
        Self {
            file: named(kernel.file).expect("the build has the files of its tables"),
            kernel: kernel.name,
            grid,
            block: kernel.threads,
            shared_bytes: 0,
            cluster: [1; 3],
            tensor_maps: Vec::new(),
        }
    }

    /// What its kernel is written for.
    pub fn architecture(&self) -> Architecture {
        self.file.architecture
    }

    /// Whether it needs neither clusters nor tensor maps.
    pub fn is_plain(&self) -> bool {
        self.cluster == [1; 3] && self.tensor_maps.is_empty()
    }

    /// For executors that have no clusters: whether the launch needs none.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) if it does.
    pub fn check_unclustered(&self) -> Result<()> {
        match self.cluster {
            [1, 1, 1] => Ok(()),
            cluster => Err(value(
                "launch",
                format!("{} with clusters of {cluster:?} blocks", self.kernel),
                "blocks that are in no cluster",
            )),
        }
    }

    /// For executors that have neither clusters nor tensor maps: whether the launch needs none.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) if it does.
    pub fn check_plain(&self) -> Result<()> {
        self.check_unclustered()?;
        match self.tensor_maps.len() {
            0 => Ok(()),
            n => {
                let found = format!("{} with {n} tensor maps", self.kernel);
                Err(value("launch", found, "none"))
            }
        }
    }
}

/// Carries out launches.
pub trait Executor {
    /// What can go wrong.
    type Error;

    /// Launches a kernel with the bytes of its parameter, after which it takes the maps of the launch.
    ///
    /// # Errors
    /// What the executor cannot do: one that knows nothing of clusters and tensor maps begins with [`Launch::check_plain`].
    ///
    /// # Safety
    /// The addresses in `params` are those of buffers as large as the plan's call says, which stay allocated until the
    /// kernel has ended, and nothing else writes what it reads or touches what it writes.
    unsafe fn launch(&self, launch: &Launch, params: &[u8])
    -> std::result::Result<(), Self::Error>;
}

/// Launches all, in order.
///
/// # Safety
/// As [`Executor::launch`].
pub(super) unsafe fn run<'a, E: Executor>(
    executor: &E,
    launches: impl IntoIterator<Item = &'a Launch>,
    params: &[u8],
) -> std::result::Result<(), E::Error> {
    for launch in launches {
        // SAFETY: the caller vouches for the addresses.
        unsafe { executor.launch(launch, params) }?;
    }
    Ok(())
}
