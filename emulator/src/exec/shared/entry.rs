//! What the race detector remembers of one access.

use super::Clock;
use crate::error::Access;

/// Who an access is by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    /// A warp of the block; of an asynchronous unit, its party (see `parties`).
    pub warp: usize,
    pub lane: usize,
    pub pc: usize,
}

/// How the bytes of an access come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A load or store, or a finished `cp.async`.
    Plain,
    /// Atomic, volatile or relaxed.
    Atomic,
    /// A `cp.async` on its way.
    Pending,
    /// Bytes of a bulk copy, written by the asynchronous proxy: on their way while the clock is
    /// [`Entry::NEVER`].
    Bulk,
}

/// `clock:29 kind:2 party:8 lane:5 pc:20`; 0 is nobody, as clocks begin at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) struct Entry(u64);

/// The decoder refuses longer kernels.
const PC_MASK: usize = (1 << 20) - 1;

impl Entry {
    pub const NONE: Self = Self(0);
    /// An atomic access that everybody knows of.
    pub const KNOWN_ATOMIC: Self = Self((Kind::Atomic as u64) << 33);
    /// A clock that nobody knows. No warp counts so far within any limit of instructions.
    pub const NEVER: u32 = (1 << 29) - 1;

    #[inline(always)]
    pub fn new(who: Who, clock: u32, kind: Kind) -> Self {
        Self(
            u64::from(clock) << 35
                | (kind as u64) << 33
                | (who.warp as u64 & 255) << 25
                | (who.lane as u64) << 20
                | who.pc.min(PC_MASK) as u64,
        )
    }
    #[inline(always)]
    pub fn clock(self) -> u32 {
        (self.0 >> 35) as u32
    }
    #[inline(always)]
    pub fn party(self) -> usize {
        (self.0 >> 25) as usize & 255
    }
    pub fn lane(self) -> usize {
        (self.0 >> 20) as usize & 31
    }
    #[inline(always)]
    pub fn kind(self) -> Kind {
        match self.0 >> 33 & 3 {
            0 => Kind::Plain,
            1 => Kind::Atomic,
            2 => Kind::Pending,
            _ => Kind::Bulk,
        }
    }
    pub fn atomic(self) -> bool {
        self.kind() == Kind::Atomic
    }
    /// Whether it is another party's and not among what `who` knows.
    #[inline(always)]
    pub fn unordered(self, known: &Clock, who: Who) -> bool {
        self.party() != who.warp && self.clock() > known[self.party()]
    }
    /// How a report calls it.
    pub fn access(self, plain: Access) -> Access {
        match self.kind() {
            Kind::Atomic => Access::Atomic,
            Kind::Bulk => Access::AsyncWrite,
            _ => plain,
        }
    }
    pub fn who(self) -> Who {
        Who {
            warp: self.party(),
            lane: self.lane(),
            pc: self.0 as usize & PC_MASK,
        }
    }
}

/// A conflict, before its places are put into words.
pub(crate) enum Conflict {
    Uninitialised,
    Pending(Who),
    Race {
        other: Who,
        other_access: Access,
    },
    /// A write of the generic proxy that no proxy fence made visible to an asynchronous access.
    Unfenced(Who),
}

impl Conflict {
    pub fn race(e: Entry, plain: Access) -> Self {
        Self::Race {
            other: e.who(),
            other_access: e.access(plain),
        }
    }
}

/// Whether an access now may follow the last plain write.
#[inline(always)]
pub(super) fn written(e: Entry, known: &Clock, who: Who) -> Result<(), Conflict> {
    let pending = e.kind() == Kind::Pending;
    if !pending && !e.unordered(known, who) {
        return Ok(());
    }
    if pending || e.clock() == Entry::NEVER {
        return Err(Conflict::Pending(e.who()));
    }
    Err(Conflict::race(e, Access::Write))
}
