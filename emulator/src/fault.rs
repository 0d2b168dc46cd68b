//! What a launch reports when it goes wrong.

use std::fmt;

/// A state space, as the access named it or as its generic address resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Space {
    /// Device memory.
    Global,
    /// Memory of the block.
    Shared,
    /// Memory of the thread.
    Local,
    /// Read-only module variables.
    Const,
    /// Kernel or function parameters.
    Param,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Const => "const",
            Space::Param => "param",
        })
    }
}

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic read-modify-write.
    Atomic,
    /// The write of an asynchronous copy.
    AsyncWrite,
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccessKind::Read => "read",
            AccessKind::Write => "write",
            AccessKind::Atomic => "atomic",
            AccessKind::AsyncWrite => "asynchronous copy",
        })
    }
}

/// A place in the program and the thread that was there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The instruction's text, as the PTX has it.
    pub instruction: String,
    /// Line in the PTX text, from 1; 0 when there is none.
    pub ptx_line: u32,
    /// Source file and line, when the PTX carries `.loc` (nvcc `-lineinfo`).
    pub source: Option<(String, u32)>,
    /// Index of the block in the grid.
    pub block: Option<(u32, u32, u32)>,
    /// Index of the thread in its block; the first of those concerned.
    pub thread: Option<(u32, u32, u32)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "";
        if let Some((x, y, z)) = self.block {
            write!(f, "block ({x},{y},{z})")?;
            sep = ", ";
        }
        if let Some((x, y, z)) = self.thread {
            write!(f, "{sep}thread ({x},{y},{z})")?;
            sep = ", ";
        }
        if self.ptx_line != 0 {
            write!(f, "{sep}PTX line {}", self.ptx_line)?;
            sep = ", ";
        }
        if let Some((file, line)) = &self.source {
            write!(f, "{sep}{file}:{line}")?;
        }
        if !self.instruction.is_empty() {
            write!(f, ": `{}`", self.instruction)?;
        }
        Ok(())
    }
}

/// Threads of a warp that wait, what for, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The warp's index in its block.
    pub warp: u32,
    /// The lanes that wait.
    pub lanes: u32,
    /// What they wait for.
    pub waits_for: String,
    /// Where.
    pub place: Place,
}

impl fmt::Display for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "warp {} lanes {:#010x} wait for {} at {}",
            self.warp, self.lanes, self.waits_for, self.place
        )
    }
}

/// The kinds of faults.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch's arguments do not fit the kernel or the machine.
    InvalidLaunch(String),
    /// The module has no such kernel.
    UnknownKernel(String),
    /// The emulator does not know an instruction or one of its modifiers.
    UnknownInstruction(String),
    /// An instruction is known but its operands are not what the ISA allows.
    InvalidInstruction(String),
    /// An access outside every allocation (or the shared, local or parameter window).
    OutOfBounds {
        /// Where the address points.
        space: Space,
        /// What the access does.
        access: AccessKind,
        /// The address (an offset for shared, local and param).
        address: u64,
        /// Bytes accessed by the thread.
        bytes: u32,
        /// What is there instead.
        detail: String,
    },
    /// An address that is not a multiple of the access's width.
    Misaligned {
        /// Where the address points.
        space: Space,
        /// What the access does.
        access: AccessKind,
        /// The address.
        address: u64,
        /// The alignment it needs.
        align: u32,
    },
    /// A read of bytes that were never written.
    Uninitialised {
        /// Where the address points.
        space: Space,
        /// The address.
        address: u64,
        /// Bytes accessed by the thread.
        bytes: u32,
    },
    /// A write to memory that cannot be written.
    ReadOnly {
        /// The address.
        address: u64,
    },
    /// Two accesses that nothing orders, at least one a write.
    Race {
        /// Shared within a block, global between blocks.
        space: Space,
        /// A byte both touch.
        address: u64,
        /// What the access at [`Fault::place`] does.
        access: AccessKind,
        /// What the access at `other` does.
        other_access: AccessKind,
        /// The other party.
        other: Box<Place>,
    },
    /// An access to the destination of an asynchronous copy that has not been waited for.
    PendingCopy {
        /// The shared-memory offset.
        address: u64,
        /// What the access at [`Fault::place`] does.
        access: AccessKind,
        /// The copy.
        other: Box<Place>,
    },
    /// A `bar.sync` (or another `.aligned` instruction) reached by some threads of a warp only.
    DivergentBarrier {
        /// The lanes that came.
        arrived: u32,
        /// The lanes of the warp that have not exited.
        live: u32,
        /// Where the others are.
        others: Vec<Waiter>,
    },
    /// A barrier with a bad thread count, or with counts that do not match.
    BarrierCount(String),
    /// A `.sync` warp instruction whose member mask cannot be met.
    MemberMask {
        /// The mask named.
        mask: u32,
        /// Why it cannot be met.
        detail: String,
    },
    /// Misuse of an mbarrier object.
    Mbarrier(String),
    /// No thread can make progress.
    Deadlock {
        /// Who waits where.
        waiters: Vec<Waiter>,
    },
    /// A warp executed more instructions than the launch allows.
    InstructionLimit(u64),
    /// The kernel executed `trap`, or a device-side assertion failed.
    Trap(String),
}

/// A fault: what happened, in which kernel, where.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// The kernel launched.
    pub kernel: String,
    /// Where it happened.
    pub place: Place,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in kernel `{}`", self.kind, self.kernel)?;
        let place = self.place.to_string();
        if !place.is_empty() {
            write!(f, ", {place}")?;
        }
        match &self.kind {
            FaultKind::Race {
                other_access,
                other,
                ..
            } => write!(f, "\n  against the {other_access} at {other}"),
            FaultKind::PendingCopy { other, .. } => write!(f, "\n  the copy: {other}"),
            FaultKind::DivergentBarrier { others, .. } => {
                others.iter().try_for_each(|w| write!(f, "\n  {w}"))
            }
            FaultKind::Deadlock { waiters } => {
                waiters.iter().try_for_each(|w| write!(f, "\n  {w}"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::InvalidLaunch(s) => write!(f, "invalid launch: {s}"),
            FaultKind::UnknownKernel(s) => write!(f, "no kernel named `{s}`"),
            FaultKind::UnknownInstruction(s) => write!(f, "unknown instruction: {s}"),
            FaultKind::InvalidInstruction(s) => write!(f, "invalid instruction: {s}"),
            FaultKind::OutOfBounds {
                space,
                access,
                address,
                bytes,
                detail,
            } => write!(
                f,
                "{access} of {bytes} bytes out of bounds at {space} address {address:#x} ({detail})"
            ),
            FaultKind::Misaligned {
                space,
                access,
                address,
                align,
            } => write!(
                f,
                "misaligned {access} at {space} address {address:#x}, which needs {align}-byte alignment"
            ),
            FaultKind::Uninitialised {
                space,
                address,
                bytes,
            } => write!(
                f,
                "read of {bytes} bytes at {space} address {address:#x} that were never written"
            ),
            FaultKind::ReadOnly { address } => {
                write!(f, "write to read-only memory at {address:#x}")
            }
            FaultKind::Race {
                space,
                address,
                access,
                ..
            } => write!(f, "race: {access} of {space} address {address:#x}"),
            FaultKind::PendingCopy {
                address, access, ..
            } => write!(
                f,
                "{access} of shared address {address:#x} while an asynchronous copy to it is pending"
            ),
            FaultKind::DivergentBarrier { arrived, live, .. } => write!(
                f,
                "divergent barrier: lanes {arrived:#010x} arrived of {live:#010x}"
            ),
            FaultKind::BarrierCount(s) => write!(f, "barrier count: {s}"),
            FaultKind::MemberMask { mask, detail } => {
                write!(f, "member mask {mask:#010x} cannot be met: {detail}")
            }
            FaultKind::Mbarrier(s) => write!(f, "mbarrier: {s}"),
            FaultKind::Deadlock { .. } => write!(f, "deadlock: no thread can make progress"),
            FaultKind::InstructionLimit(n) => {
                write!(f, "a warp executed more than {n} instructions")
            }
            FaultKind::Trap(s) => write!(f, "trap: {s}"),
        }
    }
}
