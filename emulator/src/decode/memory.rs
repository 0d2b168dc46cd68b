//! Loads, stores, atomics and fences.

use super::*;
use crate::ast::Arg;
use crate::numeric::{Half, Round, add_odd, ftz, min_max};

const SCOPES: &[&str] = &["cta", "cluster", "gpu", "sys"];

impl Decoder<'_> {
    /// The state space modifier; generic when none is named.
    pub fn space(&mut self, m: &mut Mods) -> Result<Mem> {
        const SPACES: &[(&str, Mem)] = &[
            ("global", Mem::Global),
            ("shared", Mem::Shared),
            ("shared::cta", Mem::Shared),
            ("local", Mem::Local),
            ("const", Mem::Const),
            ("param", Mem::Param),
            ("param::entry", Mem::Param),
            ("param::func", Mem::Param),
        ];
        for (name, mem) in SPACES {
            if m.has(name) {
                return Ok(*mem);
            }
        }
        Ok(Mem::Generic)
    }

    /// Cache operators, eviction priorities and prefetch hints: no effect on results. Returns
    /// whether a cache policy operand follows.
    fn hints(&mut self, m: &mut Mods) -> bool {
        for s in ["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified"] {
            m.has(s);
        }
        while m.prefixed("L1::").is_some() {}
        let policy = m.has("L2::cache_hint");
        while m.prefixed("L2::").is_some() {}
        policy
    }

    fn order(&mut self, m: &mut Mods) -> Order {
        let mut o = Order::default();
        match m.one_of(&[
            "weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio",
        ]) {
            Some("volatile" | "relaxed" | "mmio") => o.strong = true,
            Some("acquire") => (o.strong, o.acquire) = (true, true),
            Some("release") => (o.strong, o.release) = (true, true),
            Some("acq_rel") => (o.strong, o.acquire, o.release) = (true, true, true),
            _ => {}
        }
        m.has("mmio");
        m.one_of(SCOPES);
        o
    }

    /// The operand of a `.param` access is a kernel parameter, or lives in the frame.
    fn param_space(&self, mem: Mem, arg: &Arg) -> Mem {
        if mem != Mem::Param {
            return mem;
        }
        if let Arg::Address(base, ..) = arg
            && let Arg::Name(n) = &**base
            && matches!(self.symbol(n), Some(Symbol::Frame(_)))
        {
            return Mem::Generic;
        }
        if self.in_entry {
            Mem::Param
        } else {
            Mem::Generic
        }
    }

    fn class(mem: Mem, store: bool) -> Class {
        match (mem, store) {
            (Mem::Global, false) => Class::LoadGlobal,
            (Mem::Global, true) => Class::StoreGlobal,
            (Mem::Shared, false) => Class::LoadShared,
            (Mem::Shared, true) => Class::StoreShared,
            (Mem::Local, _) => Class::Local,
            (Mem::Const | Mem::Param, _) => Class::LoadConst,
            (Mem::Generic, _) => Class::Generic,
        }
    }

    pub fn memory(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        Ok(Some(match m.name {
            "ld" | "ldu" => self.load(m, args)?,
            "st" => self.store(m, args)?,
            "atom" => self.atomic(m, args, true)?,
            "red" if !m.peek("async") => self.atomic(m, args, false)?,
            "prefetch" | "prefetchu" => {
                while m.prefixed("L").is_some() {}
                self.space(m)?;
                (Op::Nop, Class::Other)
            }
            "discard" | "applypriority" => {
                while m.prefixed("L2").is_some() {}
                self.space(m)?;
                (Op::Nop, Class::Other)
            }
            "createpolicy" => {
                m.has("fractional");
                while m.prefixed("L2::").is_some() {}
                let ty = m.ty()?;
                if args.is_empty() || ty.bits != 64 {
                    return bad("operands are missing");
                }
                // A policy has no effect here; any value will do.
                let zero = [Arg::Int(0)];
                let args = [&args[..1], &zero[..]].concat();
                (
                    self.alu(&args, ty, 1, super::int::lanes1(|_| 0))?,
                    Class::Other,
                )
            }
            "membar" => {
                if m.one_of(&["gl", "cta", "sys"]).is_none() {
                    return unknown("no scope");
                }
                (Op::Fence, Class::Fence)
            }
            "fence" => {
                if m.has("mbarrier_init") {
                    m.one_of(&["release"]);
                    m.one_of(SCOPES);
                } else if m.has("proxy") {
                    if m.one_of(&["async", "async.global", "alias", "async::generic"])
                        .is_none()
                    {
                        return unknown("this proxy");
                    }
                    self.space(m)?;
                } else {
                    m.one_of(&["sc", "acq_rel", "acquire", "release"]);
                    m.one_of(SCOPES);
                }
                (Op::Fence, Class::Fence)
            }
            _ => return Ok(None),
        }))
    }

    fn vector(m: &mut Mods) -> usize {
        match m.one_of(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some("v8") => 8,
            _ => 1,
        }
    }

    fn load(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        let order = self.order(m);
        let mem = self.space(m)?;
        let policy = self.hints(m);
        let n = Self::vector(m);
        let ty = m.ty()?;
        if args.len() != 2 + usize::from(policy) {
            return bad("wrong number of operands");
        }
        let elements = Self::elements(&args[0]);
        if elements.len() != n || ty.kind == Kind::Pred {
            return bad(format!("{n} destinations are needed"));
        }
        let mut dst_bits = ty.bits;
        let mut dst = Vec::new();
        for e in elements {
            let r = self.dst_or_sink(e)?;
            dst_bits = r.map_or(dst_bits, |r| r.bits).max(ty.bits);
            dst.push(r.map(|r| r.index));
        }
        let mem = self.param_space(mem, &args[1]);
        let access = Access {
            mem,
            address: self.address(&args[1])?,
            bytes: ty.bits / 8,
            signed: ty.signed(),
            order,
        };
        let class = Self::class(mem, false);
        Ok((
            Op::Ld {
                access,
                dst,
                dst_bits,
            },
            class,
        ))
    }

    fn store(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        if m.peek("async") || m.peek("bulk") {
            return unknown("asynchronous stores");
        }
        let order = self.order(m);
        let mem = self.space(m)?;
        let policy = self.hints(m);
        let n = Self::vector(m);
        let ty = m.ty()?;
        if args.len() != 2 + usize::from(policy) {
            return bad("wrong number of operands");
        }
        let src = self.sources(&args[1], ty)?;
        if src.len() != n || ty.kind == Kind::Pred {
            return bad(format!("{n} sources are needed"));
        }
        let mem = self.param_space(mem, &args[0]);
        if matches!(mem, Mem::Const | Mem::Param) {
            return bad("this space cannot be written");
        }
        let access = Access {
            mem,
            address: self.address(&args[0])?,
            bytes: ty.bits / 8,
            signed: false,
            order,
        };
        Ok((Op::St { access, src }, Self::class(mem, true)))
    }

    fn atomic(&mut self, m: &mut Mods, args: &[Arg], returns: bool) -> Result<(Op, Class)> {
        let mut order = self.order(m);
        order.strong = true;
        let mem = self.space(m)?;
        if !matches!(mem, Mem::Generic | Mem::Global | Mem::Shared) {
            return unknown("this space");
        }
        while m.prefixed("L2::").is_some() {}
        let Some(op) = m.one_of(&[
            "add", "and", "or", "xor", "exch", "cas", "min", "max", "inc", "dec",
        ]) else {
            return unknown("no operation");
        };
        let noftz = m.has("noftz");
        if m.one_of(&["v2", "v4", "v8"]).is_some() {
            return unknown("vector atomics");
        }
        let ty = m.ty()?;
        if ty.kind == Kind::Pred || ty.bits == 8 {
            return unknown("this type");
        }
        let cas = op == "cas";
        if cas && !returns {
            return unknown("`red.cas`");
        }
        let f = scalar(op, ty, noftz, mem)?;
        let at = usize::from(returns);
        if args.len() != at + 2 + usize::from(cas) {
            return bad("wrong number of operands");
        }
        let dst = if returns {
            self.dst_or_sink(&args[0])?.map(|r| r.index)
        } else {
            None
        };
        let access = Access {
            mem,
            address: self.address(&args[at])?,
            bytes: ty.bits / 8,
            signed: false,
            order,
        };
        let src = self.src(&args[at + 1], ty)?;
        let cas = if cas {
            Some(self.src(&args[at + 2], ty)?)
        } else {
            None
        };
        Ok((
            Op::Atom {
                access,
                dst,
                f,
                src,
                cas,
            },
            Class::Atomic,
        ))
    }
}

/// The function of an atomic: of the old value and the operand. Also `redux`'s.
pub fn scalar(op: &str, ty: Ty, noftz: bool, mem: Mem) -> Result<Scalar> {
    let bits = ty.bits;
    let trim = move |x: u64| crate::numeric::extend(x, bits, false);
    let signed = ty.signed();
    let sx = move |x: u64| crate::numeric::extend(x, bits, true) as i64;
    Ok(match (op, ty.kind, bits) {
        ("add", Kind::B | Kind::U | Kind::S, 32 | 64) => {
            Box::new(move |a, b| trim(a.wrapping_add(b)))
        }
        ("add", Kind::F, 32) => {
            // On global memory the operation flushes, on shared memory it does not.
            let z = mem == Mem::Global;
            Box::new(move |a, b| {
                let (a, b) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
                let r = if z { ftz(ftz(a) + ftz(b)) } else { a + b };
                u64::from(crate::numeric::bits32(r))
            })
        }
        ("add", Kind::F, 64) => Box::new(|a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits()),
        ("add" | "min" | "max", Kind::F | Kind::Bf, 16)
        | ("add" | "min" | "max", Kind::F16x2 | Kind::Bf16x2, 32) => {
            if !noftz {
                return unknown("no `.noftz`");
            }
            let h = if matches!(ty.kind, Kind::Bf | Kind::Bf16x2) {
                Half::Bf16
            } else {
                Half::F16
            };
            let op = op.to_owned();
            let one = move |a: u16, b: u16| {
                let (x, y) = (h.value(a), h.value(b));
                let r = if op == "add" {
                    add_odd(f64::from(x), f64::from(y))
                } else {
                    f64::from(min_max(x, y, op == "max", false))
                };
                u64::from(h.round(r, Round::Nearest))
            };
            let pair = bits == 32;
            Box::new(move |a, b| {
                let low = one(a as u16, b as u16);
                if pair {
                    low | one((a >> 16) as u16, (b >> 16) as u16) << 16
                } else {
                    low
                }
            })
        }
        ("and", _, _) if ty.is_int() => Box::new(|a, b| a & b),
        ("or", _, _) if ty.is_int() => Box::new(|a, b| a | b),
        ("xor", _, _) if ty.is_int() => Box::new(|a, b| a ^ b),
        ("exch" | "cas", _, _) => Box::new(|_, b| b),
        ("min", Kind::U | Kind::S, _) => Box::new(move |a, b| {
            if signed {
                trim(sx(a).min(sx(b)) as u64)
            } else {
                a.min(b)
            }
        }),
        ("max", Kind::U | Kind::S, _) => Box::new(move |a, b| {
            if signed {
                trim(sx(a).max(sx(b)) as u64)
            } else {
                a.max(b)
            }
        }),
        ("inc", Kind::U, 32) => Box::new(|a, b| if a >= b { 0 } else { a + 1 }),
        ("dec", Kind::U, 32) => Box::new(|a, b| if a == 0 || a > b { b } else { a - 1 }),
        _ => return unknown(format!("`.{op}` of this type")),
    })
}
