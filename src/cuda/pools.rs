//! The pools of a paged cache on a device.

use super::buffer::{Checks, Lent};
use super::{BufferMut, Result, ViewMut};
#[cfg(feature = "candle-cuda")]
use crate::cpu::check_apart;
#[cfg(feature = "candle-cuda")]
use crate::error;
use crate::tensor::{Layout, Part};

/// The pools of a cache, keys and values: in buffers of their own, or in one.
pub(crate) struct Pools<'a, T> {
    memory: Memory<'a, T>,
    parts: [Part; 2],
}

enum Memory<'a, T> {
    Two([&'a mut dyn BufferMut<T>; 2]),
    #[cfg_attr(not(feature = "candle-cuda"), expect(dead_code, reason = "candle's"))]
    One(&'a mut dyn BufferMut<T>),
}

impl<'a, T> Pools<'a, T> {
    /// Pools in buffers of their own.
    pub(crate) fn new<'k: 'a, 'v: 'a>(k_pages: ViewMut<'k, T>, v_pages: ViewMut<'v, T>) -> Self {
        let parts = [k_pages.layout, v_pages.layout].map(|layout| Part { start: 0, layout });
        let memory = Memory::Two([k_pages.buffer, v_pages.buffer]);
        Self { memory, parts }
    }

    /// Pools in one buffer, with no element in common.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn of_one_buffer(
        buffer: &'a mut dyn BufferMut<T>,
        parts: [Part; 2],
    ) -> error::Result<Self> {
        for (argument, part) in ["k_pages", "v_pages"].into_iter().zip(parts) {
            part.check(argument, buffer.len())?;
        }
        check_apart(parts)?;
        let memory = Memory::One(buffer);
        Ok(Self { memory, parts })
    }

    /// The layouts of keys and of values.
    pub(super) fn layouts(&self) -> [Layout; 2] {
        self.parts.map(|part| part.layout)
    }

    pub(super) fn check(&self, checks: &Checks<'_>) -> Result<()> {
        match &self.memory {
            Memory::Two([k_pages, v_pages]) => {
                checks.buffer("k_pages", &**k_pages)?;
                checks.buffer("v_pages", &**v_pages)
            }
            Memory::One(buffer) => checks.buffer("k_pages", &**buffer),
        }
    }

    /// Where each pool begins.
    pub(super) fn write<'l>(self, lent: &mut Lent<'l>) -> [u64; 2]
    where
        'a: 'l,
    {
        match self.memory {
            Memory::Two([k_pages, v_pages]) => [
                lent.write("k_pages", k_pages),
                lent.write("v_pages", v_pages),
            ],
            Memory::One(buffer) => {
                let address = lent.write("k_pages", buffer);
                (self.parts).map(|part| address + (part.start * size_of::<T>()) as u64)
            }
        }
    }
}
