//! A parsed PTX text.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::decode::{self, ModuleVar};
use crate::error::{Fault, FaultKind, MemoryError, ParseError, Place};
use crate::exec;
use crate::ir::{Kernel, ParamInfo};
use crate::ptx::ast::{Ast, Init, Var, VarSpace};
use crate::{DevicePtr, LaunchConfig, Memory, Report};

/// What is known of a kernel before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelInfo {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub params: Vec<ParamInfo>,
    /// Size of the parameter bytes.
    pub param_bytes: u32,
    /// Static shared memory in bytes; 0 if the kernel cannot run.
    pub static_shared: u32,
    /// `.maxntid`: the largest block.
    pub max_threads: Option<u32>,
    /// `.reqntid`: the exact block.
    pub required_block: Option<(u32, u32, u32)>,
    /// `.reqnctapercluster`: the exact cluster, in blocks.
    pub required_cluster: Option<(u32, u32, u32)>,
}

/// A parsed PTX text, ready to launch. Cheap to share between threads.
pub struct Module {
    /// Tells modules apart in a [`Memory`].
    id: u64,
    infos: Vec<KernelInfo>,
    kernels: Vec<Result<Kernel, Box<Fault>>>,
    vars: HashMap<String, ModuleVar>,
    /// Global and constant variables in the order of their indices, with their initialisers.
    data: Vec<Var>,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module")
            .field(
                "kernels",
                &self.infos.iter().map(|k| &k.name).collect::<Vec<_>>(),
            )
            .finish()
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Module {
    /// Parses a PTX text. Instructions the emulator does not know are not an error here but upon the
    /// launch of the kernel that holds them.
    ///
    /// # Errors
    /// [`ParseError`] with the line of the text that is not well formed.
    pub fn parse(ptx: &str) -> Result<Self, ParseError> {
        let ast: Ast = crate::ptx::parse(ptx)?;
        let mut vars = HashMap::new();
        let mut data = Vec::new();
        for v in &ast.vars {
            let stored = matches!(v.space, VarSpace::Global | VarSpace::Const);
            let index = data.len() as u32;
            if stored {
                data.push(v.clone());
            }
            vars.insert(
                v.name.clone(),
                ModuleVar {
                    space: v.space,
                    index,
                    size: v.size,
                },
            );
        }
        let mut infos = Vec::new();
        let mut kernels = Vec::new();
        for f in ast.funcs.iter().filter(|f| f.entry) {
            let kernel = decode::decode(&ast, f, &vars);
            let (params, param_bytes) = decode::layout(&f.params);
            infos.push(KernelInfo {
                name: f.name.clone(),
                params,
                param_bytes,
                static_shared: kernel.as_ref().map_or(0, |k| k.static_shared),
                max_threads: f.max_threads,
                required_block: f.required_block,
                required_cluster: f.required_cluster,
            });
            kernels.push(kernel);
        }
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            infos,
            kernels,
            vars,
            data,
        })
    }

    /// The kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &KernelInfo> {
        self.infos.iter()
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&KernelInfo> {
        self.kernels().find(|k| k.name == name)
    }

    /// Whether the kernel can run: it exists and holds no instruction the emulator does not know.
    ///
    /// # Errors
    /// What a launch would answer.
    pub fn check(&self, kernel: &str) -> Result<(), Box<Fault>> {
        self.code(kernel).map(|_| ())
    }

    fn code(&self, kernel: &str) -> Result<(&Kernel, &KernelInfo), Box<Fault>> {
        let Some(i) = self.infos.iter().position(|k| k.name == kernel) else {
            return Err(Fault::bad_launch(
                kernel,
                "the module has no kernel of that name",
            ));
        };
        Ok((
            self.kernels[i].as_ref().map_err(Clone::clone)?,
            &self.infos[i],
        ))
    }

    /// Address and size of a `.global` or `.const` variable in `memory`, loading the module's
    /// variables there if this is the first use. `None` if there is no such variable.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] when the address space is used up.
    pub fn variable(
        &self,
        memory: &Memory,
        name: &str,
    ) -> Result<Option<(DevicePtr, u64)>, MemoryError> {
        let Some(v) = self
            .vars
            .get(name)
            .filter(|v| matches!(v.space, VarSpace::Global | VarSpace::Const))
        else {
            return Ok(None);
        };
        let addresses = self.load(memory)?;
        Ok(Some((DevicePtr(addresses[v.index as usize]), v.size)))
    }

    /// Runs a kernel to its end.
    ///
    /// `params` is laid out by the kernel's `.param` declarations; [`Params`](crate::Params) builds it.
    ///
    /// # Errors
    /// The [`Fault`] of the first thread that did something wrong, or what is wrong with the launch.
    pub fn launch(
        &self,
        memory: &Memory,
        kernel: &str,
        config: &LaunchConfig,
        params: &[u8],
    ) -> Result<Report, Box<Fault>> {
        let (code, info) = self.code(kernel)?;
        if let Some(cluster) = info
            .required_cluster
            .filter(|&cluster| cluster != (1, 1, 1))
        {
            let what = format!("clusters of {cluster:?} blocks, which the kernel requires");
            return Err(Box::new(Fault {
                kind: FaultKind::Unsupported(what),
                kernel: kernel.to_owned(),
                place: Place::default(),
            }));
        }
        let addresses = self
            .load(memory)
            .map_err(|e| Fault::bad_launch(kernel, e.to_string()))?;
        exec::launch(
            code,
            memory,
            addresses,
            config,
            params,
            (info.max_threads, info.required_block),
        )
    }

    /// Puts the module's variables into memory, once.
    fn load(&self, memory: &Memory) -> Result<Arc<Vec<u64>>, MemoryError> {
        memory.module(self.id, || {
            let mut addresses = Vec::with_capacity(self.data.len());
            for v in &self.data {
                let constant = v.space == VarSpace::Const;
                let p = if constant {
                    memory.alloc_const(v.size)?
                } else {
                    memory.alloc_zeroed(v.size)?
                };
                addresses.push(p.0);
            }
            for (v, &address) in self.data.iter().zip(&addresses) {
                let mut bytes = Vec::new();
                for i in &v.init {
                    match i {
                        Init::Bytes(b) => bytes.extend_from_slice(b),
                        Init::Symbol { name, offset, size } => {
                            let base = self
                                .vars
                                .get(name)
                                .and_then(|v| addresses.get(v.index as usize))
                                .copied();
                            let value = base.unwrap_or(0).wrapping_add(*offset as u64);
                            bytes
                                .extend_from_slice(&value.to_le_bytes()[..(*size).min(8) as usize]);
                        }
                    }
                }
                memory.write(DevicePtr(address), &bytes)?;
            }
            Ok(addresses)
        })
    }
}
