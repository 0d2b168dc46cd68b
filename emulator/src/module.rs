//! Modules and their launch: the crate's front door.

use crate::ast;
use crate::decode::Program;
use crate::exec;
use crate::fault::{Fault, FaultKind, Place};
use crate::memory::{DevicePtr, Memory};
use crate::parser::{self, ParseError};
use crate::report::Report;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Which checks a launch makes. Bounds and alignment are always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checks {
    /// Reads of shared, local and device memory that nobody wrote.
    pub uninitialised: bool,
    /// Races in shared memory, among the threads of a block.
    pub shared_races: bool,
    /// Races in global memory, among the blocks of the launch.
    pub global_races: bool,
    /// Accesses to the destination of a pending asynchronous copy.
    pub pending_copies: bool,
}

impl Checks {
    /// Every check.
    pub const fn all() -> Self {
        Checks {
            uninitialised: true,
            shared_races: true,
            global_races: true,
            pending_copies: true,
        }
    }

    /// Bounds and alignment only.
    pub const fn none() -> Self {
        Checks {
            uninitialised: false,
            shared_races: false,
            global_races: false,
            pending_copies: false,
        }
    }

    /// With `uninitialised` set.
    pub const fn with_uninitialised(mut self, on: bool) -> Self {
        self.uninitialised = on;
        self
    }

    /// With `shared_races` set.
    pub const fn with_shared_races(mut self, on: bool) -> Self {
        self.shared_races = on;
        self
    }

    /// With `global_races` set.
    pub const fn with_global_races(mut self, on: bool) -> Self {
        self.global_races = on;
        self
    }

    /// With `pending_copies` set.
    pub const fn with_pending_copies(mut self, on: bool) -> Self {
        self.pending_copies = on;
        self
    }
}

impl Default for Checks {
    fn default() -> Self {
        Checks::all()
    }
}

/// How to launch a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchConfig {
    /// Blocks in the grid.
    pub grid: (u32, u32, u32),
    /// Threads in a block.
    pub block: (u32, u32, u32),
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// Seeds the order in which warps run.
    pub seed: u64,
    /// The checks to make.
    pub checks: Checks,
    /// The most instructions one warp may execute, against endless loops.
    pub max_warp_instructions: u64,
}

impl LaunchConfig {
    /// A one-dimensional launch.
    pub fn new(grid: u32, block: u32) -> Self {
        Self::new_3d((grid, 1, 1), (block, 1, 1))
    }

    /// A launch in three dimensions.
    pub fn new_3d(grid: (u32, u32, u32), block: (u32, u32, u32)) -> Self {
        LaunchConfig {
            grid,
            block,
            shared_bytes: 0,
            seed: 0,
            checks: Checks::all(),
            max_warp_instructions: 1 << 32,
        }
    }

    /// With dynamic shared memory.
    pub fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// With another seed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With other checks.
    pub fn checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self
    }

    /// With another instruction limit per warp.
    pub fn max_warp_instructions(mut self, limit: u64) -> Self {
        self.max_warp_instructions = limit;
        self
    }
}

/// A fixed-size byte image of a parameter, for [`ParamValue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamBytes {
    bytes: [u8; 8],
    size: usize,
}

/// A scalar that can be a kernel parameter.
pub trait ParamValue {
    /// Its bytes.
    fn param_bytes(&self) -> ParamBytes;
}

macro_rules! param_value {
    ($($t:ty),*) => {$(
        impl ParamValue for $t {
            fn param_bytes(&self) -> ParamBytes {
                let b = self.to_le_bytes();
                let mut bytes = [0; 8];
                bytes[..b.len()].copy_from_slice(&b);
                ParamBytes { bytes, size: b.len() }
            }
        }
    )*};
}
param_value!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl ParamValue for DevicePtr {
    fn param_bytes(&self) -> ParamBytes {
        self.0.param_bytes()
    }
}

/// Lays out kernel parameters: each value at the next multiple of its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    bytes: Vec<u8>,
}

impl Params {
    /// No parameters yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a scalar.
    pub fn arg(mut self, value: impl ParamValue) -> Self {
        let v = value.param_bytes();
        self.align(v.size);
        self.bytes.extend_from_slice(&v.bytes[..v.size]);
        self
    }

    /// Appends a struct given by its bytes, at a multiple of `align`.
    pub fn raw(mut self, bytes: &[u8], align: usize) -> Self {
        self.align(align.max(1));
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The parameter bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn align(&mut self, align: usize) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(align), 0);
    }
}

type Decoded = Result<Arc<Program>, Box<Fault>>;

/// A parsed PTX module.
#[derive(Debug)]
pub struct Module {
    ast: ast::Module,
    id: u64,
    programs: Mutex<HashMap<String, Decoded>>,
}

impl Module {
    /// Parses PTX text. Instructions are only decoded when their kernel is first launched.
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Ok(Module {
            ast: parser::parse(ptx)?,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            programs: Mutex::new(HashMap::new()),
        })
    }

    /// The names of the module's kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.ast
            .functions
            .iter()
            .filter(|f| f.entry)
            .map(|f| f.name.as_str())
    }

    /// The bytes of a kernel's parameters, or `None` if there is no such kernel.
    pub fn param_size(&self, kernel: &str) -> Option<usize> {
        let f = self.function(kernel)?;
        let mut end = 0usize;
        for p in &f.params {
            end = end.next_multiple_of(p.align.max(1) as usize) + p.size as usize;
        }
        Some(end)
    }

    /// The address in `memory` of a module-scope `.global` or `.const` variable, which is
    /// created there on the first call or launch.
    pub fn variable(&self, memory: &Memory, name: &str) -> Option<DevicePtr> {
        let vars = memory.instantiate(self.id, &self.ast).ok()?;
        vars.get(name).copied().map(DevicePtr)
    }

    /// Decodes a kernel without running it: the first unknown instruction is the error.
    pub fn check(&self, kernel: &str) -> Result<(), Box<Fault>> {
        self.program(kernel).map(|_| ())
    }

    /// Runs a kernel over a grid and waits for it.
    ///
    /// `params` is laid out as the kernel's `.param` declarations say; see [`Params`].
    pub fn launch(
        &self,
        memory: &Memory,
        kernel: &str,
        config: &LaunchConfig,
        params: &[u8],
    ) -> Result<Report, Box<Fault>> {
        let program = self.program(kernel)?;
        let invalid = |s: String| {
            Box::new(Fault {
                kind: FaultKind::InvalidLaunch(s),
                kernel: kernel.to_owned(),
                place: Place::default(),
            })
        };
        let want = self.param_size(kernel).unwrap_or(0);
        // Trailing padding is tolerated: C structs are padded, .param lists are not.
        if params.len() < want || params.len() >= want + 16 {
            return Err(invalid(format!(
                "the kernel takes {want} bytes of parameters, not {}",
                params.len()
            )));
        }
        let vars = memory
            .instantiate(self.id, &self.ast)
            .map_err(|e| invalid(e.to_string()))?;
        exec::launch(&program, memory, &vars, config, params)
    }

    fn function(&self, kernel: &str) -> Option<&ast::Function> {
        self.ast
            .functions
            .iter()
            .find(|f| f.entry && f.name == kernel)
    }

    fn program(&self, kernel: &str) -> Decoded {
        if self.function(kernel).is_none() {
            return Err(Box::new(Fault {
                kind: FaultKind::UnknownKernel(kernel.to_owned()),
                kernel: kernel.to_owned(),
                place: Place::default(),
            }));
        }
        let mut programs = match self.programs.lock() {
            Ok(p) => p,
            Err(poisoned) => poisoned.into_inner(),
        };
        if let Some(p) = programs.get(kernel) {
            return p.clone();
        }
        let decoded = crate::decode::decode(&self.ast, kernel).map(Arc::new);
        programs.insert(kernel.to_owned(), decoded.clone());
        decoded
    }
}
