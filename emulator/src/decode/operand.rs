//! Resolves operands.

use super::*;
use crate::ast::Arg;

impl Decoder<'_> {
    /// A register by name.
    pub fn reg(&self, name: &str) -> Result<Reg> {
        match self.regs.get(name) {
            Some(r) => Ok(*r),
            None => bad(format!("`{name}` is not a register")),
        }
    }

    pub fn pred(&self, name: &str) -> Result<u32> {
        let r = self.reg(name)?;
        if r.pred {
            Ok(r.index)
        } else {
            bad(format!("`{name}` is not a predicate"))
        }
    }

    pub fn symbol(&self, name: &str) -> Option<Symbol> {
        self.symbols.get(name).copied()
    }

    /// A destination register.
    pub fn dst(&self, arg: &Arg) -> Result<Reg> {
        match arg {
            Arg::Name(n) => {
                let r = self.reg(n)?;
                if r.pred {
                    return bad(format!("`{n}` is a predicate"));
                }
                Ok(r)
            }
            _ => bad("the destination is not a register"),
        }
    }

    /// A destination that may be `_`.
    pub fn dst_or_sink(&self, arg: &Arg) -> Result<Option<Reg>> {
        match arg {
            Arg::Sink => Ok(None),
            _ => self.dst(arg).map(Some),
        }
    }

    /// A destination predicate that may be `_`.
    pub fn pred_dst(&self, arg: &Arg) -> Result<Option<u32>> {
        match arg {
            Arg::Sink => Ok(None),
            Arg::Name(n) => self.pred(n).map(Some),
            _ => bad("the destination is not a predicate"),
        }
    }

    /// A source predicate, maybe negated.
    pub fn psrc(&self, arg: &Arg) -> Result<PSrc> {
        match arg {
            Arg::Name(n) => Ok(PSrc {
                index: self.pred(n)?,
                not: false,
            }),
            Arg::Not(n) => Ok(PSrc {
                index: self.pred(n)?,
                not: true,
            }),
            Arg::Int(i) => Ok(PSrc {
                index: u32::MAX,
                not: *i == 0,
            }),
            _ => bad("not a predicate"),
        }
    }

    pub fn constant(&mut self, value: u64) -> Src {
        let next = self.program.consts.len() as u32;
        let index = *self.consts.entry(value).or_insert(next);
        if index == next {
            self.program.consts.push([value; LANES]);
        }
        Src::Const(index)
    }

    /// A source of the given type.
    pub fn src(&mut self, arg: &Arg, ty: Ty) -> Result<Src> {
        let mask = extend(u64::MAX, ty.bits);
        match arg {
            Arg::Name(n) => {
                if let Some(r) = self.regs.get(n.as_str()) {
                    if r.pred {
                        return bad(format!("`{n}` is a predicate"));
                    }
                    return Ok(Src::Reg(r.index));
                }
                if n.starts_with('%')
                    && let Some(s) = special(n)
                {
                    return Ok(Src::Special(s));
                }
                if n == "WARP_SZ" {
                    return Ok(self.constant(32));
                }
                self.address_of(n, 0)
            }
            Arg::Offset(n, offset) => self.address_of(n, *offset),
            Arg::Int(i) => {
                let value = match (ty.kind, ty.bits) {
                    // An integer literal is a bit pattern, also for half types.
                    (Kind::F, 32 | 64) => return bad("an integer for a float operand"),
                    _ => *i as u64 & mask,
                };
                Ok(self.constant(value))
            }
            Arg::F32(b) if ty.bits == 64 && ty.kind == Kind::F => {
                Ok(self.constant(f64::from(f32::from_bits(*b)).to_bits()))
            }
            Arg::F32(b) => Ok(self.constant(u64::from(*b) & mask)),
            Arg::F64(b) => {
                if ty.bits == 64 {
                    Ok(self.constant(*b))
                } else {
                    Ok(self.constant(u64::from((f64::from_bits(*b) as f32).to_bits()) & mask))
                }
            }
            _ => bad("not a value"),
        }
    }

    fn address_of(&mut self, name: &str, offset: i64) -> Result<Src> {
        if let Some(s) = self.symbols.get(name).copied() {
            return Ok(match s {
                Symbol::KernelParam(at) | Symbol::Shared(at) => {
                    self.constant(at.wrapping_add(offset as u64))
                }
                Symbol::Frame(at) => Src::Frame(at.wrapping_add(offset as u64)),
            });
        }
        if self.module.globals.iter().any(|g| g.name == name) {
            let next = self.variables.len() as u32;
            let i = *self.variables.entry(name.to_owned()).or_insert(next);
            return Ok(Src::Variable(i, offset));
        }
        let place = self
            .module
            .functions
            .iter()
            .position(|f| f.name == name && !f.entry);
        if let Some(place) = place {
            self.function_number(name)?;
            return Ok(self.constant(FUNCTION_BASE_ADDRESS + place as u64));
        }
        bad(format!("`{name}` is not declared"))
    }

    /// The number of a called function, which is thereby queued for decoding.
    pub fn function_number(&mut self, name: &str) -> Result<u32> {
        if let Some(i) = self.functions.get(name) {
            return Ok(*i);
        }
        let Some(at) = self.module.functions.iter().position(|f| f.name == name) else {
            return bad(format!("function `{name}` is not declared"));
        };
        let f = &self.module.functions[at];
        if f.body.is_none() {
            return bad(format!("function `{name}` has no body here"));
        }
        if f.entry {
            return bad(format!("`{name}` is a kernel"));
        }
        let i = self.queue.len() as u32;
        self.queue.push(at);
        self.program.by_place.insert(at as u64, i);
        self.functions.insert(name.to_owned(), i);
        Ok(i)
    }

    /// Queues the functions whose addresses variables hold: a call through a register may go there.
    pub fn queue_addressed(&mut self) {
        let module = self.module;
        let symbols = module
            .globals
            .iter()
            .filter_map(|g| g.init.as_ref())
            .flat_map(|i| &i.symbols);
        for (.., name, _) in symbols {
            // What is no function with a body is a variable, or cannot be called.
            let _ = self.function_number(name);
        }
    }

    /// `[base+offset]`, without further operands.
    pub fn address(&mut self, arg: &Arg) -> Result<Address> {
        match arg {
            Arg::Address(base, offset, more) if more.is_empty() => {
                let ty = Ty {
                    kind: Kind::B,
                    bits: 64,
                };
                Ok(Address {
                    base: self.src(base, ty)?,
                    offset: *offset,
                })
            }
            _ => bad("not an address"),
        }
    }

    /// The elements of `{a, b}`, or the one operand.
    pub fn elements(arg: &Arg) -> &[Arg] {
        match arg {
            Arg::Vector(v) => v,
            _ => std::slice::from_ref(arg),
        }
    }

    pub fn sources(&mut self, arg: &Arg, ty: Ty) -> Result<Vec<Src>> {
        Self::elements(arg)
            .iter()
            .map(|a| self.src(a, ty))
            .collect()
    }
}

/// Addresses of functions begin here, so that none is null.
pub const FUNCTION_BASE_ADDRESS: u64 = 0x10;

fn extend(x: u64, bits: u32) -> u64 {
    crate::numeric::extend(x, bits, false)
}

fn special(name: &str) -> Option<Special> {
    let dim = |s: &str| -> Option<u8> {
        match s {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        }
    };
    if let Some((base, d)) = name.rsplit_once('.')
        && let Some(d) = dim(d)
    {
        return Some(match base {
            "%tid" => Special::Tid(d),
            "%ntid" => Special::Ntid(d),
            "%ctaid" => Special::Ctaid(d),
            "%nctaid" => Special::Nctaid(d),
            "%clusterid" => Special::ClusterId(d),
            "%nclusterid" => Special::NClusterId(d),
            "%cluster_ctaid" => Special::ClusterCtaId(d),
            "%cluster_nctaid" => Special::ClusterNCtaId(d),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NSmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LaneMask(MaskKind::Eq),
        "%lanemask_le" => Special::LaneMask(MaskKind::Le),
        "%lanemask_lt" => Special::LaneMask(MaskKind::Lt),
        "%lanemask_ge" => Special::LaneMask(MaskKind::Ge),
        "%lanemask_gt" => Special::LaneMask(MaskKind::Gt),
        "%clock" | "%clock_hi" => Special::Clock,
        "%clock64" => Special::Clock64,
        "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi" => Special::GlobalTimer,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%cluster_ctarank" => Special::ClusterCtaRank,
        "%cluster_nctarank" => Special::ClusterNCtaRank,
        _ => return None,
    })
}
