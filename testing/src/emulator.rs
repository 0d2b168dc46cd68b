//! Runs plans on an emulator: the PTX that the build made, instruction by instruction on the CPU, with all of its checks on.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, LazyLock, Mutex};

use flash_alibi::Attention;
use flash_alibi::plan::{
    Addresses, Architecture, Call, Device, Dtype, Executor, Launch, Packed, Paged, Plan, Swizzle,
    TensorMap,
};
use ptx_emulator::tensor_map::{ElementType, Tiled};
use ptx_emulator::{DevicePtr, LaunchConfig, Memory, Module, Report, Scalar};

use crate::problem::{Attended, Failure, OnDevice, Placed, Problem};
use crate::{LaidOut, Rows};

/// An element type that kernels take and the emulator's memory holds.
pub trait OnEmulator: OnDevice + Scalar {}

impl<T: OnDevice + Scalar> OnEmulator for T {}

/// As small as devices are that run the kernels: compute capability 8.6.
pub const SMALLEST: Device = DEVICES[1];

/// A device of compute capability 9.0, of which the kernels need no more.
pub const HOPPER: Device = DEVICES[3];

/// A device of each compute capability that plans or kernels may tell apart.
pub const DEVICES: [Device; 6] = [
    device((8, 0), 163),
    device((8, 6), 99),
    device((8, 9), 99),
    device((9, 0), 227),
    device((10, 0), 227),
    device((12, 0), 99),
];

/// With what a block may have of shared memory on such devices.
const fn device(compute_capability: (u32, u32), shared_kib: u32) -> Device {
    Device {
        compute_capability,
        shared_bytes_per_block: shared_kib << 10,
        multiprocessors: 2,
    }
}

/// [`Plan::prefill`], or another of its kind.
pub type Planner = dyn Fn(&Attention, &Call, &Device) -> flash_alibi::Result<Plan>;

/// What outputs hold afterwards, and what was executed.
#[derive(Debug)]
pub struct Emulated<T> {
    /// The outputs.
    pub attended: Attended<T>,
    /// Of each launch.
    pub reports: Vec<Report>,
    /// `[heads_q, 2]`: the tiles of keys that prefill computed for each head, and all.
    pub tiles: Vec<u64>,
}

impl<T> Emulated<T> {
    /// The outputs, and the reports of the launches.
    pub(crate) fn split(self) -> (Attended<T>, Vec<Report>) {
        (self.attended, self.reports)
    }
}

/// Carries out launches in its memory.
pub struct Emulator {
    /// What launches read and write.
    pub memory: Memory,
    /// Of the order of warps and blocks.
    pub seed: u64,
    /// Of the launches so far.
    pub reports: Mutex<Vec<Report>>,
    /// In place of what the build made of files.
    modules: HashMap<&'static str, Arc<Module>>,
}

impl Emulator {
    /// With empty memory.
    pub fn new(seed: u64) -> Self {
        Self {
            memory: Memory::new(),
            seed,
            reports: Mutex::default(),
            modules: HashMap::new(),
        }
    }

    /// Takes kernels from this module in place of a file such as `sm90/prefill`.
    pub fn with_module(mut self, file: &'static str, module: Arc<Module>) -> Self {
        self.modules.insert(file, module);
        self
    }

    /// The kernels of a launch's file.
    fn module(&self, launch: &Launch) -> Arc<Module> {
        static MODULES: LazyLock<Mutex<HashMap<&'static str, Arc<Module>>>> =
            LazyLock::new(Mutex::default);
        if let Some(module) = self.modules.get(launch.file.name) {
            return module.clone();
        }
        let mut modules = MODULES.lock().expect("parsing does not panic");
        let module = modules.entry(launch.file.name).or_insert_with(|| {
            Arc::new(Module::parse(launch.file.ptx).expect("nvcc writes well-formed PTX"))
        });
        module.clone()
    }
}

impl Executor for Emulator {
    type Error = Failure;

    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<(), Failure> {
        launch.check_unclustered().map_err(Failure::new)?;
        let module = self.module(launch);
        let config = LaunchConfig::new(launch.grid, launch.block)
            .shared_bytes(launch.shared_bytes)
            .shared_limit(match launch.architecture() {
                Architecture::Sm90 => HOPPER.shared_bytes_per_block,
                _ => SMALLEST.shared_bytes_per_block,
            })
            .seed(self.seed);
        let params = with_maps(&module, launch, params)?;
        let report =
            (module.launch(&self.memory, launch.kernel, &config, &params)).map_err(Failure::new)?;
        let mut reports = self.reports.lock().expect("nothing panics with it");
        reports.push(report);
        Ok(())
    }
}

/// The bytes of all parameters: the first, and the tensor maps that a launch has, where the kernel has them.
fn with_maps<'a>(
    module: &Module,
    launch: &Launch,
    params: &'a [u8],
) -> Result<Cow<'a, [u8]>, Failure> {
    if launch.tensor_maps.is_empty() {
        return Ok(params.into());
    }
    let kernel = module.kernel(launch.kernel).ok_or_else(|| {
        Failure::new(format!(
            "{} has no kernel {}",
            launch.file.name, launch.kernel
        ))
    })?;
    let maps = launch.tensor_maps.iter().map(|map| {
        let address = map.operand.address(params).map_err(Failure::new)?;
        encoded(map, address)
    });
    let maps = maps.collect::<Result<Vec<_>, Failure>>()?;
    let all = [params].into_iter().chain(maps.iter().map(Vec::as_slice));
    let mut bytes = vec![0; kernel.param_bytes as usize];
    if kernel.params.len() != 1 + maps.len() {
        return Err(Failure::new(format!(
            "{} takes {} parameters, and the launch has {}",
            launch.kernel,
            kernel.params.len(),
            1 + maps.len()
        )));
    }
    for (param, argument) in kernel.params.iter().zip(all) {
        if param.size as usize != argument.len() {
            return Err(Failure::new(format!(
                "{}: {} has {} bytes, and the launch has {}",
                launch.kernel,
                param.name,
                param.size,
                argument.len()
            )));
        }
        bytes[param.offset as usize..][..argument.len()].copy_from_slice(argument);
    }
    Ok(bytes.into())
}

/// A tensor map as the emulator has it, of a tensor that begins at an address.
fn encoded(map: &TensorMap, address: u64) -> Result<Vec<u8>, Failure> {
    let element = match map.dtype {
        Dtype::F16 => ElementType::F16,
        Dtype::Bf16 => ElementType::Bf16,
    };
    let mut tiled = Tiled::dense(element, address, &map.dims, &map.tile);
    for (dimension, &stride) in tiled.dimensions.iter_mut().skip(1).zip(&map.strides) {
        dimension.stride = stride;
    }
    let tiled = tiled.swizzle(match map.swizzle {
        Swizzle::None => ptx_emulator::Swizzle::None,
        Swizzle::Bytes32 => ptx_emulator::Swizzle::B32,
        Swizzle::Bytes64 => ptx_emulator::Swizzle::B64,
        Swizzle::Bytes128 => ptx_emulator::Swizzle::B128,
    });
    let made = ptx_emulator::tensor_map::TensorMap::new(tiled).map_err(Failure::new)?;
    Ok(made.encode().to_vec())
}

impl<T: OnEmulator> Problem<'_, T> {
    /// Plans it and runs the plan, in an order of warps and blocks that the seed chooses.
    pub fn emulate(&self, planner: &Planner, seed: u64) -> Result<Emulated<T>, Failure> {
        self.emulate_by(planner, Emulator::new(seed))
    }

    /// Plans it and runs the plan.
    pub fn emulate_by(
        &self,
        planner: &Planner,
        emulator: Emulator,
    ) -> Result<Emulated<T>, Failure> {
        let call = Call {
            dtype: T::DTYPE,
            q: self.q.layout,
            k: self.k.layout,
            v: self.v.layout,
            out: self.out.layout,
            packed: self.cu_seqlens_q.map(|cu_q| {
                let longest = |cu: &[i32]| cu.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
                Packed {
                    batch: cu_q.len() - 1,
                    max_seqlen_q: longest(cu_q) as usize,
                    max_seqlen_k: self.cu_seqlens_k.map_or(0, longest) as usize,
                }
            }),
            paged: self.block_table.map(|(_, paged)| Paged {
                radii: self.radii.is_some(),
                ..paged
            }),
        };
        let plan = planner(self.attention, &call, &SMALLEST).map_err(Failure::new)?;

        fn put<P: Scalar>(memory: &Memory, data: &[P]) -> Result<DevicePtr, Failure> {
            memory.upload(data).map_err(Failure::new)
        }
        let memory = &emulator.memory;
        let buffer = |placed: &Placed<T>| put(memory, placed.data);
        let first = |buffer: DevicePtr, placed: &Placed<T>| {
            buffer.0 + (placed.offset * size_of::<T>()) as u64
        };
        let integers = |data: Option<&[i32]>| data.map_or(Ok(0), |data| Ok(put(memory, data)?.0));
        let floats = |data: Option<&[f32]>| data.map_or(Ok(0), |data| Ok(put(memory, data)?.0));
        let out = buffer(&self.out)?;
        let lse = match self.lse {
            Some(lse) => Some(put(memory, lse)?),
            None => None,
        };
        let tiles = put(memory, &vec![0u64; 2 * self.attention.heads_q()])?;
        let addresses = Addresses {
            q: first(buffer(&self.q)?, &self.q),
            k: first(buffer(&self.k)?, &self.k),
            v: first(buffer(&self.v)?, &self.v),
            out: first(out, &self.out),
            lse: lse.map_or(0, |lse| lse.0),
            slopes: put(memory, self.attention.slopes().as_slice())?.0,
            cu_seqlens_q: integers(self.cu_seqlens_q)?,
            cu_seqlens_k: integers(self.cu_seqlens_k)?,
            seqused_k: integers(self.seqused_k)?,
            leftpad_k: integers(self.leftpad_k)?,
            offset: integers(self.offset)?,
            block_table: integers(self.block_table.map(|(table, _)| table))?,
            report: tiles.0,
            centres: floats(self.radii.map(|(centres, _)| centres))?,
            radii: floats(self.radii.map(|(_, radii)| radii))?,
            workspace: memory
                .alloc(plan.workspace_bytes())
                .map_err(Failure::new)?
                .0,
        };
        // SAFETY: an emulator checks every access itself.
        unsafe { plan.run(&emulator, &addresses) }.map_err(Failure::new)?;
        let attended = Attended {
            out: memory
                .download(out, self.out.data.len())
                .map_err(Failure::new)?,
            lse: match lse {
                Some(at) => memory
                    .download(at, self.lse.map_or(0, <[f32]>::len))
                    .map_err(Failure::new)?,
                None => Vec::new(),
            },
        };
        Ok(Emulated {
            attended,
            tiles: memory
                .download(tiles, 2 * self.attention.heads_q())
                .map_err(Failure::new)?,
            reports: emulator
                .reports
                .into_inner()
                .expect("nothing panics with it"),
        })
    }
}

impl<T: OnEmulator> LaidOut<T> {
    /// Runs a planner's kernels under the emulator, twice in different orders.
    pub fn attend_on_emulator(
        &self,
        planner: &Planner,
    ) -> Result<(Vec<Rows>, Vec<Report>), String> {
        self.attend_twice(|problem, turn| problem.emulate(planner, turn).map(Emulated::split))
    }
}
