//! Operands to rows of the register file.

use super::scope::Sym;
use super::ty::Ty;
use super::{DYNAMIC_MARK, Decoder, Res};
use crate::ir::regs::{D, P, W};
use crate::ir::{Addr, Const, LaneMask, Row};
use crate::ptx::ast::{AddrBase, Operand};

const ZERO_PRED: &str = "(zero predicate)";

impl Decoder<'_> {
    pub(super) fn const_w(&mut self, c: Const) -> W {
        let (rows, order) = (&mut self.w_rows, &mut self.w_order);
        *self.w_consts.entry(c).or_insert_with(|| {
            let w = W(*rows);
            *rows += 1;
            order.push((w, c));
            w
        })
    }

    pub(super) fn const_d(&mut self, c: Const) -> D {
        let (rows, order) = (&mut self.d_rows, &mut self.d_order);
        *self.d_consts.entry(c).or_insert_with(|| {
            let d = D(*rows);
            *rows += 1;
            order.push((d, c));
            d
        })
    }

    pub(super) fn imm_w(&mut self, v: u32) -> W {
        self.const_w(Const::Imm(u64::from(v)))
    }

    pub(super) fn imm_d(&mut self, v: u64) -> D {
        self.const_d(Const::Imm(v))
    }

    pub(super) fn special(name: &str) -> Option<Const> {
        let axis = |s: &str| match s {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let (base, component) = name.split_once('.').unwrap_or((name, ""));
        Some(match base {
            "%tid" => Const::Tid(axis(component)?),
            "%ntid" => Const::Ntid(axis(component)?),
            // Without cluster launches every block is its own cluster.
            "%ctaid" | "%clusterid" => Const::Ctaid(axis(component)?),
            "%nctaid" | "%nclusterid" => Const::Nctaid(axis(component)?),
            "%cluster_ctaid" => Const::Imm(0),
            "%cluster_nctaid" => Const::Imm(1),
            "%cluster_ctarank" => Const::Imm(0),
            "%cluster_nctarank" => Const::Imm(1),
            "%laneid" => Const::LaneId,
            "%warpid" => Const::WarpId,
            "%nwarpid" => Const::WarpCount,
            "%smid" => Const::Imm(0),
            "%nsmid" => Const::Imm(1),
            "%gridid" => Const::Imm(0),
            "%lanemask_eq" => Const::LaneMask(LaneMask::Eq),
            "%lanemask_lt" => Const::LaneMask(LaneMask::Lt),
            "%lanemask_le" => Const::LaneMask(LaneMask::Le),
            "%lanemask_gt" => Const::LaneMask(LaneMask::Gt),
            "%lanemask_ge" => Const::LaneMask(LaneMask::Ge),
            "%dynamic_smem_size" => Const::DynamicShared,
            "%total_smem_size" => Const::TotalShared,
            "WARP_SZ" => Const::Imm(32),
            _ => return None,
        })
    }

    /// The constant a name stands for when used as a value: an address or a special register.
    pub(super) fn name_const(&mut self, name: &str, offset: i64) -> Res<Const> {
        Ok(match self.lookup(name) {
            Some(Sym::Global(index)) => Const::Variable(index, offset),
            Some(Sym::Shared(at) | Sym::Local(at) | Sym::Param(at)) => {
                Const::Imm((i64::from(at) + offset) as u64)
            }
            Some(Sym::W(..) | Sym::D(..) | Sym::P(_)) => {
                return Err(format!("register `{name}` has the wrong width here"));
            }
            Some(Sym::Label(_) | Sym::Targets(_)) => {
                return Err(format!("label `{name}` used as a value"));
            }
            None if self.dynamic.iter().any(|d| d == name) => {
                // Dynamic shared memory begins where the static ends, known only at the end.
                Const::Imm(DYNAMIC_MARK.wrapping_add(offset as u64))
            }
            None => match Self::special(name) {
                Some(c) => c,
                None => return Err(format!("unknown name `{name}`")),
            },
        })
    }

    /// A source of at most 32 bits.
    pub(super) fn w(&mut self, o: &Operand) -> Res<W> {
        match o {
            Operand::Name(n) => match self.lookup(n) {
                Some(Sym::W(w)) => Ok(w),
                _ => {
                    let c = self.name_const(n, 0)?;
                    if matches!(c, Const::Variable(..)) {
                        return Err(format!("address of `{n}` in a 32-bit register"));
                    }
                    Ok(self.const_w(c))
                }
            },
            Operand::Offset(n, off) => {
                let c = self.name_const(n, *off)?;
                Ok(self.const_w(c))
            }
            Operand::Int(v) => Ok(self.imm_w(*v as u32)),
            Operand::F32(v) => Ok(self.imm_w(*v)),
            // A decimal or double literal in a single-precision place is converted.
            Operand::F64(v) => Ok(self.imm_w((f64::from_bits(*v) as f32).to_bits())),
            _ => Err("expected a 32-bit operand".into()),
        }
    }

    /// A source of 16 bits; immediates are cut to size.
    pub(super) fn h(&mut self, o: &Operand) -> Res<W> {
        match o {
            Operand::Int(v) => Ok(self.imm_w(*v as u32 & 0xffff)),
            _ => self.w(o),
        }
    }

    /// A source of 64 bits.
    pub(super) fn d(&mut self, o: &Operand) -> Res<D> {
        match o {
            Operand::Name(n) => match self.lookup(n) {
                Some(Sym::D(d)) => Ok(d),
                _ => {
                    let c = self.name_const(n, 0)?;
                    Ok(self.const_d(c))
                }
            },
            Operand::Offset(n, off) => {
                let c = self.name_const(n, *off)?;
                Ok(self.const_d(c))
            }
            Operand::Int(v) => Ok(self.imm_d(*v as u64)),
            Operand::F64(v) => Ok(self.imm_d(*v)),
            Operand::F32(v) => Ok(self.imm_d(f64::from(f32::from_bits(*v)).to_bits())),
            _ => Err("expected a 64-bit operand".into()),
        }
    }

    /// A source of the width of `ty`.
    pub(super) fn row(&mut self, o: &Operand, ty: Ty) -> Res<Row> {
        Ok(match ty.size() {
            8 => Row::D(self.d(o)?),
            4 => Row::W(self.w(o)?),
            _ => Row::W(self.h(o)?),
        })
    }

    /// A source that may be a register wider than the instruction's type, as loads and stores allow.
    pub(super) fn any_row(&mut self, o: &Operand, ty: Ty) -> Res<Row> {
        if let Operand::Name(n) = o {
            match self.lookup(n) {
                Some(Sym::W(w)) if ty.size() <= 4 => return Ok(Row::W(w)),
                Some(Sym::D(d)) => return Ok(Row::D(d)),
                _ => {}
            }
        }
        self.row(o, ty)
    }

    pub(super) fn pred_reg(&self, name: &str) -> Res<P> {
        match self.lookup(name) {
            Some(Sym::P(p)) => Ok(p),
            _ => Err(format!("`{name}` is not a predicate register")),
        }
    }

    /// A predicate source and whether it is negated.
    pub(super) fn p(&mut self, o: &Operand) -> Res<(P, bool)> {
        match o {
            Operand::Name(n) => Ok((self.pred_reg(n)?, false)),
            Operand::Not(n) => Ok((self.pred_reg(n)?, true)),
            // Row 0 of no register: predicates start as 0, and this one is never written.
            Operand::Int(v) => {
                let zero = match self.scopes[0].get(ZERO_PRED) {
                    Some(Sym::P(p)) => *p,
                    _ => {
                        self.p_rows += 1;
                        let p = P(self.p_rows - 1);
                        self.scopes[0].insert(ZERO_PRED.to_owned(), Sym::P(p));
                        p
                    }
                };
                Ok((zero, *v != 0))
            }
            _ => Err("expected a predicate".into()),
        }
    }

    pub(super) fn dst(&self, o: &Operand) -> Res<Sym> {
        match o {
            Operand::Name(n) => match self.lookup(n) {
                Some(s @ (Sym::W(..) | Sym::D(..) | Sym::P(_))) => Ok(s),
                _ => Err(format!("`{n}` is not a register")),
            },
            _ => Err("the destination must be a register".into()),
        }
    }

    pub(super) fn dw(&self, o: &Operand) -> Res<W> {
        match self.dst(o)? {
            Sym::W(w) => Ok(w),
            _ => Err("the destination must be a 32-bit register".into()),
        }
    }

    pub(super) fn dd(&self, o: &Operand) -> Res<D> {
        match self.dst(o)? {
            Sym::D(d) => Ok(d),
            _ => Err("the destination must be a 64-bit register".into()),
        }
    }

    pub(super) fn dp(&self, o: &Operand) -> Res<P> {
        match self.dst(o)? {
            Sym::P(p) => Ok(p),
            _ => Err("the destination must be a predicate".into()),
        }
    }

    /// A destination of either width, or `_`.
    pub(super) fn drow(&self, o: &Operand) -> Res<Option<Row>> {
        if *o == Operand::Sink {
            return Ok(None);
        }
        match self.dst(o)? {
            Sym::W(w) => Ok(Some(Row::W(w))),
            Sym::D(d) => Ok(Some(Row::D(d))),
            _ => Err("the destination must not be a predicate".into()),
        }
    }

    /// The address operand of a memory instruction, and the variable's space if it names one.
    pub(super) fn addr(&mut self, o: &Operand) -> Res<Addr> {
        let Operand::Addr { base, offset, rest } = o else {
            return Err("expected an address in brackets".into());
        };
        if !rest.is_empty() {
            return Err("tensor coordinates".into());
        }
        match base {
            AddrBase::None => Ok(Addr {
                base: Row::D(self.imm_d(*offset as u64)),
                offset: 0,
            }),
            AddrBase::Name(n) => match self.lookup(n) {
                Some(Sym::W(w)) => Ok(Addr {
                    base: Row::W(w),
                    offset: *offset,
                }),
                Some(Sym::D(d)) => Ok(Addr {
                    base: Row::D(d),
                    offset: *offset,
                }),
                _ => {
                    let c = self.name_const(n, *offset)?;
                    Ok(Addr {
                        base: Row::D(self.const_d(c)),
                        offset: 0,
                    })
                }
            },
        }
    }
}
