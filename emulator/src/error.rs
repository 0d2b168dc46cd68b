//! What can go wrong: text that does not parse, memory misuse by the host, and faults of a kernel.

use std::fmt;

/// A PTX text that is not well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// What was expected or found.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

/// A host-side mistake in using [`Memory`](crate::Memory).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The range is not inside one live allocation.
    #[error("host access to {len} bytes at {address:#x} is outside every live allocation")]
    OutOfBounds {
        /// First byte of the access.
        address: u64,
        /// Length of the access in bytes.
        len: u64,
    },
    /// The pointer given to `free` is not the start of a live allocation.
    #[error("free of {address:#x}, which is not the start of a live allocation")]
    NotAllocated {
        /// The pointer.
        address: u64,
    },
    /// The address space has no room for the allocation.
    #[error("cannot allocate {bytes} bytes: the address space is used up")]
    TooLarge {
        /// Requested size.
        bytes: u64,
    },
}

/// Threads and source lines: where in a launch something happened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Block index (`%ctaid`).
    pub block: (u32, u32, u32),
    /// Thread index in the block (`%tid`), if one thread is meant.
    pub thread: Option<(u32, u32, u32)>,
    /// Line in the PTX text, from 1; 0 when unknown.
    pub ptx_line: u32,
    /// The PTX instruction as text.
    pub instruction: String,
    /// `file:line` from `.loc`, when the kernel was compiled with `-lineinfo`.
    pub source: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (x, y, z) = self.block;
        write!(f, "block ({x},{y},{z})")?;
        if let Some((x, y, z)) = self.thread {
            write!(f, " thread ({x},{y},{z})")?;
        }
        if self.ptx_line != 0 {
            write!(f, ", PTX line {}", self.ptx_line)?;
        }
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        if !self.instruction.is_empty() {
            write!(f, ": `{}`", self.instruction)?;
        }
        Ok(())
    }
}

/// A state space, as in the PTX ISA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// Device memory.
    Global,
    /// Memory of one block.
    Shared,
    /// Memory of one thread.
    Local,
    /// Constant variables of the module.
    Const,
    /// Kernel parameters.
    Param,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Const => "const",
            Self::Param => "param",
        })
    }
}

/// What an access did with memory, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic read-modify-write.
    Atomic,
    /// The destination of an asynchronous copy.
    AsyncWrite,
    /// The source of a bulk copy, or an operand of an asynchronous tensor operation.
    AsyncRead,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic",
            Self::AsyncWrite => "asynchronous copy",
            Self::AsyncRead => "asynchronous read",
        })
    }
}

/// One waiting party of a deadlock or barrier fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Warp index in the block.
    pub warp: u32,
    /// Lanes that wait, as a mask.
    pub lanes: u32,
    /// Where they wait.
    pub place: Place,
    /// For what, for example `barrier 0 (64 of 128 threads arrived)`.
    pub waits_for: String,
}

impl fmt::Display for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "warp {} lanes {:#010x} at {} waits for {}",
            self.warp, self.lanes, self.place, self.waits_for
        )
    }
}

/// The kinds of fault a launch can end with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch arguments are wrong: no such kernel, parameter size, block too large, ...
    BadLaunch(String),
    /// The kernel holds an instruction, type or modifier the emulator does not know.
    UnknownInstruction(String),
    /// An access outside every allocation, window or variable.
    OutOfBounds {
        /// State space of the access (after resolving a generic address).
        space: Space,
        /// Read or write.
        access: Access,
        /// First byte.
        address: u64,
        /// Bytes.
        len: u32,
        /// The nearest allocation, in words.
        detail: String,
    },
    /// An access to an allocation that was freed.
    UseAfterFree {
        /// First byte.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// An address that is not a multiple of the access width.
    Misaligned {
        /// State space of the access.
        space: Space,
        /// First byte.
        address: u64,
        /// Required alignment in bytes.
        align: u32,
    },
    /// A read of bytes nobody wrote.
    Uninitialised {
        /// State space.
        space: Space,
        /// First byte.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// Two unordered accesses, at least one of them a write.
    Race {
        /// State space.
        space: Space,
        /// First byte both touch.
        address: u64,
        /// What the later one (the fault's own place) did.
        access: Access,
        /// What the earlier one did.
        other_access: Access,
        /// Where the earlier one was.
        other: Place,
    },
    /// An access to the destination of an asynchronous copy that has not been waited for.
    AsyncPending {
        /// Shared address.
        address: u64,
        /// What touched it.
        access: Access,
        /// The copy.
        other: Place,
    },
    /// An access of the asynchronous proxy to bytes written by ordinary stores (or to an mbarrier that
    /// was initialised) without a proxy fence of the writer between.
    MissingProxyFence {
        /// State space.
        space: Space,
        /// First byte.
        address: u64,
        /// What the asynchronous proxy does.
        access: Access,
        /// The write that it may not see.
        other: Place,
    },
    /// A register that an asynchronous tensor operation holds, or a missing `wgmma.fence`.
    RegisterHazard {
        /// What is wrong.
        detail: String,
        /// The other access: the tensor operation that holds the register, or the access that is not
        /// fenced.
        other: Place,
    },
    /// A misused warpgroup instruction, bulk copy or tensor map.
    AsyncMisuse(String),
    /// Warps of a warpgroup that execute different instructions, or with different operands.
    WarpgroupMismatch {
        /// What differs.
        detail: String,
        /// Where the other warp is.
        other: Place,
    },
    /// A `bar.sync` (or another `.aligned` instruction) that only some threads of a warp reached.
    DivergentBarrier {
        /// Barrier number.
        barrier: u32,
        /// Lanes at the barrier.
        present: u32,
        /// Live lanes elsewhere.
        absent: u32,
        /// Where the others are.
        others: Vec<Waiter>,
    },
    /// A barrier used with a wrong or inconsistent count.
    BarrierMisuse {
        /// Barrier number.
        barrier: u32,
        /// What is wrong.
        detail: String,
    },
    /// No warp of the block can make progress.
    Deadlock {
        /// Who waits where.
        waiters: Vec<Waiter>,
    },
    /// A member mask that does not name the executing thread, or similar.
    BadMask(String),
    /// A misused `mbarrier` object.
    MbarrierMisuse(String),
    /// `trap`, or a failed device `assert`.
    Trap(String),
    /// The launch executed more warp-instructions than its limit.
    Timeout {
        /// The limit.
        limit: u64,
    },
    /// Something legal in PTX that the emulator does not do.
    Unsupported(String),
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadLaunch(s) => write!(f, "bad launch: {s}"),
            Self::UnknownInstruction(s) => write!(f, "unknown instruction: {s}"),
            Self::OutOfBounds {
                space,
                access,
                address,
                len,
                detail,
            } => {
                write!(
                    f,
                    "{space} {access} of {len} bytes at {address:#x} is out of bounds ({detail})"
                )
            }
            Self::UseAfterFree { address, len } => {
                write!(
                    f,
                    "access to {len} bytes at {address:#x}, in memory that was freed"
                )
            }
            Self::Misaligned {
                space,
                address,
                align,
            } => {
                write!(
                    f,
                    "{space} address {address:#x} is not aligned to {align} bytes"
                )
            }
            Self::Uninitialised {
                space,
                address,
                len,
            } => {
                write!(
                    f,
                    "read of uninitialised {space} memory, {len} bytes at {address:#x}"
                )
            }
            Self::Race {
                space,
                address,
                access,
                other_access,
                other,
            } => write!(
                f,
                "race on {space} address {address:#x}: this {access} is not ordered after the {other_access} at {other}"
            ),
            Self::AsyncPending {
                address,
                access,
                other,
            } => write!(
                f,
                "{access} of shared address {address:#x} while an asynchronous copy to it is pending, issued at {other}"
            ),
            Self::MissingProxyFence {
                space,
                address,
                access,
                other,
            } => write!(
                f,
                "missing proxy fence: this {access} of {space} address {address:#x} by the asynchronous proxy may not see the write at {other}, which no fence.proxy.async (or, of an mbarrier, fence.mbarrier_init) of that thread follows"
            ),
            Self::RegisterHazard { detail, other } => write!(f, "{detail}: {other}"),
            Self::AsyncMisuse(s) => f.write_str(s),
            Self::WarpgroupMismatch { detail, other } => {
                write!(
                    f,
                    "the warps of a warpgroup disagree: {detail}; the other is at {other}"
                )
            }
            Self::DivergentBarrier {
                barrier,
                present,
                absent,
                others,
            } => {
                write!(
                    f,
                    "divergent barrier {barrier}: lanes {present:#010x} arrived, lanes {absent:#010x} of the same warp did not"
                )?;
                for o in others {
                    write!(f, "\n  {o}")?;
                }
                Ok(())
            }
            Self::BarrierMisuse { barrier, detail } => {
                write!(f, "misuse of barrier {barrier}: {detail}")
            }
            Self::Deadlock { waiters } => {
                write!(f, "deadlock: no warp can make progress")?;
                for w in waiters {
                    write!(f, "\n  {w}")?;
                }
                Ok(())
            }
            Self::BadMask(s) => write!(f, "bad member mask: {s}"),
            Self::MbarrierMisuse(s) => write!(f, "misuse of an mbarrier: {s}"),
            Self::Trap(s) => write!(f, "trap: {s}"),
            Self::Timeout { limit } => {
                write!(f, "the launch ran more than {limit} warp-instructions")
            }
            Self::Unsupported(s) => write!(f, "not supported by the emulator: {s}"),
        }
    }
}

/// A launch that failed: what, in which kernel, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// Name of the kernel.
    pub kernel: String,
    /// Where it happened (default for faults before the first instruction).
    pub place: Place,
}

impl Fault {
    pub(crate) fn bad_launch(kernel: &str, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            kind: FaultKind::BadLaunch(message.into()),
            kernel: kernel.to_owned(),
            place: Place::default(),
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}`", self.kernel)?;
        if self.place.ptx_line != 0 {
            write!(f, ", {}", self.place)?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for Fault {}
