//! Instructions of warpgroups: `wgmma` and `setmaxnreg`.

use super::{Decoder, Res, arity};
use crate::ir::{Collective, MmaType, Op, Wgmma, WgmmaA};
use crate::ptx::ast::Operand;
use crate::report::Class;

impl Decoder<'_> {
    pub(super) fn warpgroup(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Option<Res<(Op, Class)>> {
        let op = match name {
            "wgmma" => self.wgmma(m, o),
            "setmaxnreg" => set_max_registers(m, o),
            _ => return None,
        };
        self.units = true;
        Some(op.map(|(op, class)| (Op::Collective { mask: None, op }, class)))
    }

    fn wgmma(&mut self, m: &[&str], o: &[Operand]) -> Res<(Collective, Class)> {
        let sync = Class::Barrier;
        match m {
            ["fence", "sync", "aligned"] => {
                return arity::<0>(o).map(|_| (Collective::WgmmaFence, sync));
            }
            ["commit_group", "sync", "aligned"] => {
                return arity::<0>(o).map(|_| (Collective::WgmmaCommit, sync));
            }
            ["wait_group", "sync", "aligned"] => {
                let [Operand::Int(n)] = o else {
                    return Err("expected a constant".into());
                };
                let n = (*n).clamp(0, 1 << 30) as u32;
                return Ok((Collective::WgmmaWait(n), sync));
            }
            ["mma_async", "sync", "aligned", rest @ ..] => self.mma_async(rest, o),
            _ => Err(String::new()),
        }
        .map(|op| (op, Class::Tensor))
    }

    fn mma_async(&mut self, m: &[&str], o: &[Operand]) -> Res<Collective> {
        let [shape, td, ta, tb] = m else {
            return Err(String::new());
        };
        let n = shape
            .strip_prefix("m64n")
            .and_then(|s| s.strip_suffix("k16"))
            .and_then(|s| s.parse::<u32>().ok())
            .filter(|n| n.is_multiple_of(8) && (8..=256).contains(n))
            .ok_or_else(|| format!("modifier `.{shape}`"))?;
        let (ty, acc_f16) = match (*td, *ta, *tb) {
            ("f32", "f16", "f16") => (MmaType::F16, false),
            ("f16", "f16", "f16") => (MmaType::F16, true),
            ("f32", "bf16", "bf16") => (MmaType::Bf16, false),
            _ => return Err(String::new()),
        };
        let [d, a, b, scale_d, rest @ ..] = o else {
            return Err("number of operands".into());
        };
        let in_registers = matches!(a, Operand::Vector(_));
        let (scale_a, scale_b, trans_a, trans_b) = match rest {
            [sa, sb, tb] if in_registers => (sa, sb, &Operand::Int(0), tb),
            [sa, sb, ta, tb] if !in_registers => (sa, sb, ta, tb),
            _ => return Err("number of operands".into()),
        };
        let a = if in_registers {
            let regs = self.rows(a, false)?;
            let regs = regs.try_into().map_err(|_| "number of registers of A")?;
            WgmmaA::Registers {
                regs,
                slots: Vec::new(),
            }
        } else {
            WgmmaA::Shared(self.d(a)?)
        };
        let op = Wgmma {
            n,
            ty,
            acc_f16,
            d: self.rows(d, true)?,
            d_slots: Vec::new(),
            a,
            b: self.d(b)?,
            scale_d: self.p(scale_d)?,
            negate_a: sign(scale_a)?,
            negate_b: sign(scale_b)?,
            trans_a: flag(trans_a)?,
            trans_b: flag(trans_b)?,
        };
        let registers = n / if acc_f16 { 4 } else { 2 };
        if op.d.len() != registers as usize {
            return Err(format!(
                "expected {registers} accumulators, found {}",
                op.d.len()
            ));
        }
        Ok(Collective::Wgmma(Box::new(op)))
    }
}

/// `imm-scale`: whether it negates.
fn sign(o: &Operand) -> Res<bool> {
    match o {
        Operand::Int(1) => Ok(false),
        Operand::Int(-1) => Ok(true),
        _ => Err("expected 1 or -1".into()),
    }
}

/// `imm-trans`.
fn flag(o: &Operand) -> Res<bool> {
    match o {
        Operand::Int(0) => Ok(false),
        Operand::Int(1) => Ok(true),
        _ => Err("expected 0 or 1".into()),
    }
}

fn set_max_registers(m: &[&str], o: &[Operand]) -> Res<(Collective, Class)> {
    let increase = match m {
        ["inc", "sync", "aligned", "u32"] => true,
        ["dec", "sync", "aligned", "u32"] => false,
        _ => return Err(String::new()),
    };
    match o {
        [Operand::Int(n)] if (24..=256).contains(n) && n % 8 == 0 => Ok((
            Collective::SetMaxRegisters {
                increase,
                count: *n as u32,
            },
            Class::Other,
        )),
        _ => Err("expected a multiple of 8 from 24 to 256".into()),
    }
}
