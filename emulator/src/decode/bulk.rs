//! Bulk copies, with and without tensor maps, their groups, and prefetches.

use super::{Decoder, Res, arity};
use crate::ir::regs::W;
use crate::ir::{Addr, BulkCopy, BulkDirection, BulkGlobal, MemSpace, Op};
use crate::ptx::ast::Operand;
use crate::report::Class;

/// Modifiers and operands that may come after those of every form.
#[derive(Default)]
struct Extras {
    multicast: bool,
    cache_hint: bool,
}

/// Takes the known modifiers that may follow off the end.
fn extras<'m>(mut m: &'m [&'m str]) -> (&'m [&'m str], Extras) {
    let mut out = Extras::default();
    if let [rest @ .., "L2::cache_hint"] = m {
        (m, out.cache_hint) = (rest, true);
    }
    if let [rest @ .., "multicast::cluster"] = m {
        (m, out.multicast) = (rest, true);
    }
    (m, out)
}

impl Decoder<'_> {
    /// `cp.async.bulk`, after `bulk`.
    pub(super) fn bulk(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        self.units = true;
        let class = Class::AsyncCopy;
        match m {
            ["commit_group"] => return arity::<0>(o).map(|_| (Op::BulkCommit, class)),
            ["wait_group", rest @ ..] => {
                let read_only = match rest {
                    [] => false,
                    ["read"] => true,
                    _ => return Err(String::new()),
                };
                let [Operand::Int(n)] = o else {
                    return Err("expected a constant".into());
                };
                let pending = (*n).clamp(0, 1 << 30) as u32;
                return Ok((Op::BulkWait { pending, read_only }, class));
            }
            _ => {}
        }
        let (m, extra) = extras(m);
        let copy = match m {
            ["tensor", dim, rest @ ..] => self.tensor_copy(rank(dim)?, rest, o, &extra),
            ["prefetch", "tensor", dim, "L2", "global", mode @ ..] if tile_mode(mode) => {
                self.tensor_prefetch(rank(dim)?, o, &extra)
            }
            _ => self.plain_copy(m, o, &extra),
        }?;
        Ok((Op::Bulk(Box::new(copy)), class))
    }

    /// The operands that modifiers ask for, at the end: block mask and cache policy.
    fn extra_operands(&mut self, o: &[Operand], extra: &Extras) -> Res<Option<W>> {
        let (mask, policy) = match (o, extra.multicast, extra.cache_hint) {
            ([], false, false) => (None, None),
            ([mask], true, false) => (Some(mask), None),
            ([policy], false, true) => (None, Some(policy)),
            ([mask, policy], true, true) => (Some(mask), Some(policy)),
            _ => return Err("number of operands".into()),
        };
        if let Some(p) = policy {
            self.d(p)?;
        }
        mask.map(|m| self.h(m)).transpose()
    }

    fn tensor_operands(&mut self, rank: usize, o: &Operand) -> Res<BulkGlobal> {
        let Operand::Addr { base, offset, rest } = o else {
            return Err("expected a tensor map and coordinates in brackets".into());
        };
        let map = self.addr(&Operand::Addr {
            base: base.clone(),
            offset: *offset,
            rest: Vec::new(),
        })?;
        let [Operand::Vector(list)] = &rest[..] else {
            return Err("expected coordinates in braces".into());
        };
        if list.len() != rank {
            return Err(format!("expected {rank} coordinates, found {}", list.len()));
        }
        let coordinates = list.iter().map(|c| self.w(c)).collect::<Res<Vec<W>>>()?;
        self.note_access(MemSpace::Shared, 16);
        self.note_access(MemSpace::Global, 4);
        Ok(BulkGlobal::Tensor { map, coordinates })
    }

    fn barrier(&mut self, o: &Operand) -> Res<Addr> {
        self.note_access(MemSpace::Shared, 8);
        self.addr(o)
    }

    fn tensor_copy(
        &mut self,
        rank: usize,
        m: &[&str],
        o: &[Operand],
        extra: &Extras,
    ) -> Res<BulkCopy> {
        match (m, o) {
            (
                [
                    "shared::cluster" | "shared::cta",
                    "global",
                    mode @ ..,
                    "mbarrier::complete_tx::bytes",
                ],
                [dst, map, barrier, rest @ ..],
            ) if tile_mode(mode) => Ok(BulkCopy {
                direction: BulkDirection::Load {
                    barrier: self.barrier(barrier)?,
                },
                shared: Some(self.addr(dst)?),
                global: self.tensor_operands(rank, map)?,
                multicast: self.extra_operands(rest, extra)?,
            }),
            (["global", "shared::cta", mode @ .., "bulk_group"], [map, src, rest @ ..])
                if tile_mode(mode) && !extra.multicast =>
            {
                self.extra_operands(rest, extra)?;
                Ok(BulkCopy {
                    direction: BulkDirection::Store,
                    shared: Some(self.addr(src)?),
                    global: self.tensor_operands(rank, map)?,
                    multicast: None,
                })
            }
            _ => Err(String::new()),
        }
    }

    fn tensor_prefetch(&mut self, rank: usize, o: &[Operand], extra: &Extras) -> Res<BulkCopy> {
        let [map, rest @ ..] = o else {
            return Err("number of operands".into());
        };
        if extra.multicast {
            return Err(String::new());
        }
        self.extra_operands(rest, extra)?;
        Ok(BulkCopy {
            direction: BulkDirection::Prefetch,
            shared: None,
            global: self.tensor_operands(rank, map)?,
            multicast: None,
        })
    }

    fn plain_copy(&mut self, m: &[&str], o: &[Operand], extra: &Extras) -> Res<BulkCopy> {
        self.note_access(MemSpace::Shared, 16);
        self.note_access(MemSpace::Global, 16);
        match (m, o) {
            (
                [
                    to @ ("shared::cluster" | "shared::cta"),
                    "global",
                    "mbarrier::complete_tx::bytes",
                ],
                [dst, src, size, barrier, rest @ ..],
            ) if !extra.multicast || *to == "shared::cluster" => Ok(BulkCopy {
                direction: BulkDirection::Load {
                    barrier: self.barrier(barrier)?,
                },
                shared: Some(self.addr(dst)?),
                global: BulkGlobal::Plain {
                    addr: self.addr(src)?,
                    size: self.w(size)?,
                },
                multicast: self.extra_operands(rest, extra)?,
            }),
            (["global", "shared::cta", "bulk_group"], [dst, src, size, rest @ ..])
                if !extra.multicast =>
            {
                self.extra_operands(rest, extra)?;
                Ok(BulkCopy {
                    direction: BulkDirection::Store,
                    shared: Some(self.addr(src)?),
                    global: BulkGlobal::Plain {
                        addr: self.addr(dst)?,
                        size: self.w(size)?,
                    },
                    multicast: None,
                })
            }
            (["prefetch", "L2", "global"], [src, size, rest @ ..]) if !extra.multicast => {
                self.extra_operands(rest, extra)?;
                Ok(BulkCopy {
                    direction: BulkDirection::Prefetch,
                    shared: None,
                    global: BulkGlobal::Plain {
                        addr: self.addr(src)?,
                        size: self.w(size)?,
                    },
                    multicast: None,
                })
            }
            _ => Err(String::new()),
        }
    }
}

/// `.1d` to `.5d`.
fn rank(dim: &str) -> Res<usize> {
    match dim {
        "1d" => Ok(1),
        "2d" => Ok(2),
        "3d" => Ok(3),
        "4d" => Ok(4),
        "5d" => Ok(5),
        _ => Err(format!("modifier `.{dim}`")),
    }
}

/// Tiles are the mode when none is given.
fn tile_mode(mode: &[&str]) -> bool {
    matches!(mode, [] | ["tile"])
}
