//! Matrix loads and stores, and tensor-core multiply-accumulate.

use super::{Decoder, Res, arity};
use crate::ir::regs::W;
use crate::ir::{Collective, MatrixMove, Mma, MmaType, Op};
use crate::ptx::ast::Operand;
use crate::report::Class;

impl Decoder<'_> {
    pub(super) fn tensor(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Option<Res<(Op, Class)>> {
        Some(match name {
            "ldmatrix" | "stmatrix" => self.matrix(name == "stmatrix", m, o),
            "movmatrix" => self.movmatrix(m, o),
            "mma" => self.mma(m, o),
            _ => return None,
        })
    }

    pub(super) fn rows(&mut self, o: &Operand, dst: bool) -> Res<Vec<W>> {
        match o {
            Operand::Vector(v) => v
                .iter()
                .map(|r| if dst { self.dw(r) } else { self.w(r) })
                .collect(),
            _ => Ok(vec![if dst { self.dw(o)? } else { self.w(o)? }]),
        }
    }

    fn matrix(&mut self, store: bool, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [a, b] = arity(o)?;
        let (regs, addr) = if store { (b, a) } else { (a, b) };
        let mut n = None;
        let mut trans = false;
        for s in m {
            match *s {
                "sync" | "aligned" | "m8n8" | "shared" | "shared::cta" | "b16" => {}
                "trans" => trans = true,
                "x1" => n = Some(1),
                "x2" => n = Some(2),
                "x4" => n = Some(4),
                _ => return Err(format!("modifier `.{s}`")),
            }
        }
        if !m.contains(&"m8n8") || !m.contains(&"b16") {
            return Err(String::new());
        }
        let regs = self.rows(regs, !store)?;
        if n != Some(regs.len()) {
            return Err("number of registers".into());
        }
        let op = Collective::Matrix(MatrixMove {
            addr: self.addr(addr)?,
            trans,
            regs,
            store,
        });
        Ok((Op::Collective { mask: None, op }, Class::Matrix))
    }

    fn movmatrix(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, a] = arity(o)?;
        if m != ["sync", "aligned", "m8n8", "trans", "b16"] {
            return Err(String::new());
        }
        let op = Collective::MovMatrix {
            d: self.dw(d)?,
            a: self.w(a)?,
        };
        Ok((Op::Collective { mask: None, op }, Class::Matrix))
    }

    fn mma(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, a, b, c] = arity(o)?;
        let ["sync", "aligned", shape, "row", "col", rest @ ..] = m else {
            return Err(String::new());
        };
        let (saturate, rest) = match rest {
            ["satfinite", r @ ..] => (true, r),
            r => (false, r),
        };
        let [td, ta, tb, tc] = rest else {
            return Err(String::new());
        };
        let element = |s: &str| match s {
            "f16" => Some(MmaType::F16),
            "bf16" => Some(MmaType::Bf16),
            "tf32" => Some(MmaType::Tf32),
            "s8" => Some(MmaType::S8),
            "u8" => Some(MmaType::U8),
            _ => None,
        };
        let (a_type, b_type) = (
            element(ta).ok_or_else(String::new)?,
            element(tb).ok_or_else(String::new)?,
        );
        let k = match (*shape, a_type) {
            ("m16n8k4", MmaType::Tf32) => 4,
            ("m16n8k8", MmaType::F16 | MmaType::Bf16 | MmaType::Tf32) => 8,
            ("m16n8k16", MmaType::F16 | MmaType::Bf16 | MmaType::S8 | MmaType::U8) => 16,
            ("m16n8k32", MmaType::S8 | MmaType::U8) => 32,
            _ => return Err(String::new()),
        };
        let int = matches!(a_type, MmaType::S8 | MmaType::U8);
        let int_b = matches!(b_type, MmaType::S8 | MmaType::U8);
        let acc_f16 = match (*td, *tc) {
            ("f32", "f32") if !int => false,
            ("f16", "f16") if a_type == MmaType::F16 => true,
            ("s32", "s32") if int => false,
            _ => return Err(String::new()),
        };
        if int != int_b || (!int && a_type != b_type) || (saturate && !int) {
            return Err(String::new());
        }
        let mma = Mma {
            k,
            a_type,
            b_type,
            acc_f16,
            int,
            saturate,
            d: self.rows(d, true)?,
            a: self.rows(a, false)?,
            b: self.rows(b, false)?,
            c: self.rows(c, false)?,
        };
        let acc = if acc_f16 { 2 } else { 4 };
        let per_word = match a_type {
            MmaType::Tf32 => 1,
            MmaType::F16 | MmaType::Bf16 => 2,
            _ => 4,
        };
        let (na, nb) = (
            (16 * k / 32 / per_word) as usize,
            (8 * k / 32 / per_word) as usize,
        );
        if mma.d.len() != acc || mma.c.len() != acc || mma.a.len() != na || mma.b.len() != nb {
            return Err("number of registers".into());
        }
        Ok((
            Op::Collective {
                mask: None,
                op: Collective::Mma(Box::new(mma)),
            },
            Class::Tensor,
        ))
    }
}
