//! Loads, stores, atomics, prefetches and asynchronous copies.

use super::{Decoder, Res, Sym, arity};
use crate::decode::ty::Ty;
use crate::fp::{self, b2f, f2b, f2h, h2f};
use crate::ir::regs::map1;
use crate::ir::{Atom, AtomFn, CpAsync, Load, MemSpace, Op, Order, Store};
use crate::ptx::ast::{AddrBase, Operand};
use crate::report::Class;

/// What the modifiers of a memory instruction say.
struct Mods {
    space: MemSpace,
    order: Order,
    vector: usize,
    ty: Ty,
    rest: Vec<String>,
    cache_hint: bool,
}

/// Bytes one lane can load or store at once.
const MAX_ACCESS: u32 = 32;

/// Hints about caches and scopes change nothing here.
fn hint(s: &str) -> bool {
    matches!(
        s,
        "ca" | "cg"
            | "cs"
            | "lu"
            | "cv"
            | "wb"
            | "wt"
            | "nc"
            | "cta"
            | "cluster"
            | "gpu"
            | "sys"
            | "noftz"
            | "L2::64B"
            | "L2::128B"
            | "L2::256B"
    ) || s.starts_with("L1::")
        || s.starts_with("L2::evict")
}

fn mods(m: &[&str]) -> Res<Mods> {
    let mut out = Mods {
        space: MemSpace::Generic,
        order: Order::Weak,
        vector: 1,
        ty: Ty::B32,
        rest: Vec::new(),
        cache_hint: false,
    };
    let mut ty = None;
    for s in m {
        match *s {
            "global" => out.space = MemSpace::Global,
            "shared" | "shared::cta" | "shared::cluster" => out.space = MemSpace::Shared,
            "local" => out.space = MemSpace::Local,
            "const" => out.space = MemSpace::Const,
            "param" | "param::entry" | "param::func" => out.space = MemSpace::Param,
            "weak" => {}
            "volatile" | "relaxed" | "mmio" => out.order = Order::Relaxed,
            "acquire" => out.order = Order::Acquire,
            "release" => out.order = Order::Release,
            "acq_rel" => out.order = Order::AcqRel,
            "v2" => out.vector = 2,
            "v4" => out.vector = 4,
            "v8" => out.vector = 8,
            "L2::cache_hint" => out.cache_hint = true,
            _ if hint(s) => {}
            _ => match Ty::parse(s) {
                Some(t) => ty = Some(t),
                None => out.rest.push((*s).to_owned()),
            },
        }
    }
    out.ty = ty.ok_or_else(|| "expected a type".to_owned())?;
    if out.ty == Ty::Pred || out.vector as u32 * out.ty.size() > MAX_ACCESS {
        return Err("a type or vector too wide for memory".into());
    }
    Ok(out)
}

impl Decoder<'_> {
    pub(super) fn memory(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Option<Res<(Op, Class)>> {
        match name {
            "ld" | "ldu" => Some(self.load(m, o)),
            "st" => Some(self.store(m, o)),
            "atom" => Some(self.atom(m, o, true)),
            "red" if m.first() != Some(&"async") => Some(self.atom(m, o, false)),
            "createpolicy" => Some(self.cache_policy(m, o)),
            "prefetch" | "prefetchu" | "applypriority" | "discard" => {
                Some(self.cache_hint(name, m, o))
            }
            "cp" if m.starts_with(&["async", "bulk"]) => Some(self.bulk(&m[2..], o)),
            "cp" if m.first() == Some(&"async") => Some(self.cp_async(&m[1..], o)),
            _ => None,
        }
    }

    /// What only moves data between caches does nothing here.
    fn cache_hint(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let levels = match (name, m) {
            // The map is not read.
            ("prefetch", ["tensormap"] | ["const" | "param", "tensormap"]) => true,
            ("prefetch", ["global" | "local", level] | [level]) => {
                matches!(*level, "L1" | "L2") || level.starts_with("L2::evict_")
            }
            ("prefetchu", [level]) => *level == "L1",
            ("applypriority", ["global", level] | [level]) => *level == "L2::evict_normal",
            ("discard", ["global", level] | [level]) => *level == "L2",
            _ => false,
        };
        let address = match (name, o) {
            ("prefetch" | "prefetchu", [a]) => a,
            ("applypriority" | "discard", [a, Operand::Int(128)]) => a,
            _ => return Err("operands".into()),
        };
        self.addr(address)?;
        match levels {
            true => Ok((Op::Nop, Class::Other)),
            false => Err(String::new()),
        }
    }

    /// Policies are hints, and a hint is any number.
    fn cache_policy(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let (Some(&("fractional" | "range" | "cvt")), Some(&"b64")) = (m.first(), m.last()) else {
            return Err(String::new());
        };
        let (Some(d), zero) = (o.first(), self.imm_d(0)) else {
            return Err("number of operands".into());
        };
        Ok((Op::Alu(map1(self.dd(d)?, zero, |x| x)), Class::Move))
    }

    /// `ld.param` in a function reads local memory, as its parameters live there.
    fn param_address(&mut self, o: &Operand) -> Option<u32> {
        let Operand::Addr {
            base: AddrBase::Name(n),
            ..
        } = o
        else {
            return None;
        };
        match self.lookup(n) {
            Some(Sym::Param(at)) => Some(at),
            _ => None,
        }
    }

    fn is_local(&self, o: &Operand) -> bool {
        matches!(o, Operand::Addr { base: AddrBase::Name(n), .. } if matches!(self.lookup(n), Some(Sym::Local(_))))
    }

    fn parts<'o>(o: &'o Operand, n: usize) -> Res<Vec<&'o Operand>> {
        let parts: Vec<&'o Operand> = match o {
            Operand::Vector(v) => v.iter().collect(),
            _ => vec![o],
        };
        if parts.len() == n {
            Ok(parts)
        } else {
            Err(format!("expected {n} elements"))
        }
    }

    fn load(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let mods = mods(m)?;
        if !mods.rest.is_empty() {
            return Err(format!("modifier `.{}`", mods.rest[0]));
        }
        if matches!(mods.order, Order::Release | Order::AcqRel) {
            return Err("a load that releases".into());
        }
        let o = if mods.cache_hint && o.len() == 3 {
            &o[..2]
        } else {
            o
        };
        let [d, a] = arity(o)?;
        let dst = Self::parts(d, mods.vector)?
            .into_iter()
            .map(|p| self.drow(p))
            .collect::<Res<Vec<_>>>()?;
        let width = mods.ty.size();
        let signed = mods.ty.signed();
        let mut space = mods.space;
        if space == MemSpace::Param {
            if let (Some(at), Operand::Addr { offset, .. }) = (self.param_address(a), a) {
                let offset = u32::try_from(i64::from(at) + offset)
                    .map_err(|_| "parameter offset".to_owned())?;
                return Ok((
                    Op::LoadParam {
                        offset,
                        width,
                        signed,
                        dst,
                    },
                    Class::LoadConst,
                ));
            }
            if self.is_local(a) {
                space = MemSpace::Local;
            }
        }
        self.note_access(space, width * dst.len() as u32);
        let addr = self.addr(a)?;
        let class = match space {
            MemSpace::Global => Class::LoadGlobal,
            MemSpace::Shared => Class::LoadShared,
            MemSpace::Local => Class::Local,
            MemSpace::Const | MemSpace::Param => Class::LoadConst,
            MemSpace::Generic => Class::Generic,
        };
        Ok((
            Op::Load(Load {
                space,
                order: mods.order,
                addr,
                width,
                signed,
                dst,
            }),
            class,
        ))
    }

    fn store(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let mods = mods(m)?;
        if !mods.rest.is_empty() {
            return Err(format!("modifier `.{}`", mods.rest[0]));
        }
        if matches!(mods.order, Order::Acquire | Order::AcqRel) || m.contains(&"nc") {
            return Err("a store that acquires, or is not coherent".into());
        }
        let o = if mods.cache_hint && o.len() == 3 {
            &o[..2]
        } else {
            o
        };
        let [a, v] = arity(o)?;
        let src = Self::parts(v, mods.vector)?
            .into_iter()
            .map(|p| self.any_row(p, mods.ty))
            .collect::<Res<Vec<_>>>()?;
        let mut space = mods.space;
        if space == MemSpace::Param && self.is_local(a) {
            space = MemSpace::Local;
        }
        if matches!(space, MemSpace::Const | MemSpace::Param) {
            return Err("a store to a read-only space".into());
        }
        self.note_access(space, mods.ty.size() * src.len() as u32);
        let addr = self.addr(a)?;
        let class = match space {
            MemSpace::Global => Class::StoreGlobal,
            MemSpace::Shared => Class::StoreShared,
            MemSpace::Local => Class::Local,
            _ => Class::Generic,
        };
        Ok((
            Op::Store(Store {
                space,
                order: mods.order,
                addr,
                width: mods.ty.size(),
                src,
            }),
            class,
        ))
    }

    fn atom(&mut self, m: &[&str], o: &[Operand], returns: bool) -> Res<(Op, Class)> {
        let mods = mods(m)?;
        let [op] = &mods.rest[..] else {
            return Err(String::new());
        };
        if !returns && matches!(op.as_str(), "exch" | "cas") {
            return Err("its result is what it is for".into());
        }
        if mods.vector != 1 {
            return Err("vector atomics".into());
        }
        let (dst, o) = if returns {
            let (d, rest) = o.split_first().ok_or_else(String::new)?;
            (self.drow(d)?, rest)
        } else {
            (None, o)
        };
        let (a, b, c) = match o {
            [a, b] if op != "cas" => (a, b, None),
            [a, b, c] if op == "cas" => (a, b, Some(self.row(c, mods.ty)?)),
            _ => return Err("number of operands".into()),
        };
        if !matches!(
            mods.space,
            MemSpace::Generic | MemSpace::Global | MemSpace::Shared
        ) {
            return Err(String::new());
        }
        let f = atom_fn(op, mods.ty).ok_or_else(String::new)?;
        // Without `.relaxed` and the like, an atomic is relaxed.
        let order = if mods.order == Order::Weak {
            Order::Relaxed
        } else {
            mods.order
        };
        self.note_access(mods.space, mods.ty.size());
        let atom = Atom {
            space: mods.space,
            order,
            addr: self.addr(a)?,
            width: mods.ty.size(),
            dst,
            b: self.row(b, mods.ty)?,
            c,
            f,
            flush_global: mods.ty == Ty::F32 && op == "add",
        };
        Ok((Op::Atom(Box::new(atom)), Class::Atomic))
    }

    fn cp_async(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let class = Class::AsyncCopy;
        match m {
            ["commit_group"] => return arity::<0>(o).map(|_| (Op::CpCommit, class)),
            ["wait_all"] => return arity::<0>(o).map(|_| (Op::CpWait(None), class)),
            ["wait_group"] => {
                let [Operand::Int(n)] = o else {
                    return Err("expected a constant".into());
                };
                return Ok((Op::CpWait(Some((*n).clamp(0, 1 << 30) as u32)), class));
            }
            ["mbarrier", "arrive", rest @ ..] => return self.cp_async_arrive(rest, o),
            _ => {}
        }
        let mut cache_hint = false;
        let [
            cache @ ("ca" | "cg"),
            "shared" | "shared::cta",
            "global",
            hints @ ..,
        ] = m
        else {
            return Err(String::new());
        };
        let ca = *cache == "ca";
        for s in hints {
            match *s {
                "L2::cache_hint" => cache_hint = true,
                "L2::64B" | "L2::128B" | "L2::256B" => {}
                _ => return Err(format!("modifier `.{s}`")),
            }
        }
        let o = if cache_hint {
            &o[..o.len().saturating_sub(1)]
        } else {
            o
        };
        let (d, s, size, extra) = match o {
            [d, s, Operand::Int(n)] => (d, s, *n, None),
            [d, s, Operand::Int(n), e] => (d, s, *n, Some(e)),
            _ => return Err("operands".into()),
        };
        if !(size == 16 || (ca && matches!(size, 4 | 8))) {
            return Err(format!("a copy of {size} bytes"));
        }
        self.note_access(MemSpace::Shared, size as u32);
        self.note_access(MemSpace::Global, size as u32);
        let mut copy = CpAsync {
            dst: self.addr(d)?,
            src: self.addr(s)?,
            size: size as u32,
            src_size: None,
            ignore_src: None,
        };
        if let Some(e) = extra {
            let is_pred = match e {
                Operand::Not(_) => true,
                Operand::Name(n) => matches!(self.lookup(n), Some(Sym::P(_))),
                _ => false,
            };
            if is_pred {
                copy.ignore_src = Some(self.p(e)?);
            } else {
                copy.src_size = Some(self.w(e)?);
            }
        }
        Ok((Op::CpAsync(Box::new(copy)), class))
    }
}

/// The function of an atomic; operands and result are zero-extended bits.
fn atom_fn(op: &str, ty: Ty) -> Option<AtomFn> {
    macro_rules! f {
        (|$a:ident, $b:ident, $c:ident| $e:expr) => {
            Some(Box::new(|$a: u64, $b: u64, $c: u64| -> u64 {
                let _ = $c;
                $e
            }))
        };
    }
    fn f32_add(a: u64, b: u64) -> u64 {
        u64::from(fp::canon(
            f32::from_bits(a as u32) + f32::from_bits(b as u32),
        ))
    }
    fn pair(a: u64, b: u64, g: impl Fn(u16, u16) -> u16) -> u64 {
        u64::from(g(a as u16, b as u16)) | u64::from(g((a >> 16) as u16, (b >> 16) as u16)) << 16
    }
    let h = |x: u16, y: u16| f2h(h2f(x) + h2f(y));
    let b = |x: u16, y: u16| f2b(b2f(x) + b2f(y));
    let fh: fn(u16, u16) -> u16 = h;
    let fb: fn(u16, u16) -> u16 = b;
    match (op, ty) {
        ("and", Ty::B32 | Ty::B64) => f!(|a, b, c| a & b),
        ("or", Ty::B32 | Ty::B64) => f!(|a, b, c| a | b),
        ("xor", Ty::B32 | Ty::B64) => f!(|a, b, c| a ^ b),
        ("exch", Ty::B32 | Ty::B64 | Ty::B16) => f!(|a, b, c| {
            let _ = a;
            b
        }),
        ("cas", Ty::B32 | Ty::B64 | Ty::B16) => f!(|a, b, c| if a == b { c } else { a }),
        ("add", Ty::U32 | Ty::S32) => f!(|a, b, c| u64::from((a as u32).wrapping_add(b as u32))),
        ("add", Ty::U64 | Ty::S64) => f!(|a, b, c| a.wrapping_add(b)),
        ("add", Ty::F32) => f!(|a, b, c| f32_add(a, b)),
        ("add", Ty::F64) => f!(|a, b, c| (f64::from_bits(a) + f64::from_bits(b)).to_bits()),
        ("add", Ty::F16) => Some(Box::new(move |a, b, _| u64::from(fh(a as u16, b as u16)))),
        ("add", Ty::Bf16) => Some(Box::new(move |a, b, _| u64::from(fb(a as u16, b as u16)))),
        ("add", Ty::F16x2) => Some(Box::new(move |a, b, _| pair(a, b, fh))),
        ("add", Ty::Bf16x2) => Some(Box::new(move |a, b, _| pair(a, b, fb))),
        ("inc", Ty::U32) => f!(|a, b, c| if a >= b { 0 } else { a + 1 }),
        ("dec", Ty::U32) => f!(|a, b, c| if a == 0 || a > b { b } else { a - 1 }),
        ("min", Ty::U32 | Ty::U64) => f!(|a, b, c| a.min(b)),
        ("max", Ty::U32 | Ty::U64) => f!(|a, b, c| a.max(b)),
        ("min", Ty::S32) => f!(|a, b, c| u64::from((a as i32).min(b as i32) as u32)),
        ("max", Ty::S32) => f!(|a, b, c| u64::from((a as i32).max(b as i32) as u32)),
        ("min", Ty::S64) => f!(|a, b, c| (a as i64).min(b as i64) as u64),
        ("max", Ty::S64) => f!(|a, b, c| (a as i64).max(b as i64) as u64),
        _ => None,
    }
}
