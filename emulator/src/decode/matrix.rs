//! Tensor-core instructions and the moves of their fragments.

use super::*;
use crate::ast::Arg;

const B32: Ty = Ty {
    kind: Kind::B,
    bits: 32,
};

impl Decoder<'_> {
    fn matrix_count(m: &mut Mods) -> Result<(usize, bool)> {
        if !m.has("sync") || !m.has("aligned") || !m.has("m8n8") {
            return unknown("shape");
        }
        let n = match m.one_of(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return unknown("no count"),
        };
        Ok((n, m.has("trans")))
    }

    pub fn matrix(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        let op = match m.name {
            "ldmatrix" | "stmatrix" => {
                let load = m.name == "ldmatrix";
                let (n, transpose) = Self::matrix_count(m)?;
                let mem = self.space(m)?;
                if !m.has("b16") {
                    return unknown("this type");
                }
                if args.len() != 2 {
                    return bad("2 operands are needed");
                }
                let (fragment, address) = if load {
                    (&args[0], &args[1])
                } else {
                    (&args[1], &args[0])
                };
                let address = self.address(address)?;
                let elements = Self::elements(fragment);
                if elements.len() != n {
                    return bad(format!("{n} registers are needed"));
                }
                if load {
                    let dst = elements
                        .iter()
                        .map(|a| Ok(self.dst(a)?.index))
                        .collect::<Result<_>>()?;
                    Op::LdMatrix {
                        dst,
                        address,
                        mem,
                        transpose,
                    }
                } else {
                    Op::StMatrix {
                        src: self.sources(fragment, B32)?,
                        address,
                        mem,
                        transpose,
                    }
                }
            }
            "movmatrix" => {
                let known = ["sync", "aligned", "m8n8", "trans", "b16"]
                    .iter()
                    .all(|x| m.has(x));
                if !known || args.len() != 2 {
                    return unknown("this form");
                }
                Op::MovMatrix {
                    dst: self.dst(&args[0])?.index,
                    src: self.src(&args[1], B32)?,
                }
            }
            "mma" => return Ok(Some((self.mma(m, args)?, Class::Tensor))),
            _ => return Ok(None),
        };
        Ok(Some((op, Class::MatrixMove)))
    }

    fn mma(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Op> {
        if !m.has("sync") || !m.has("aligned") {
            return unknown("no `.sync.aligned`");
        }
        let k = match m.one_of(&["m16n8k16", "m16n8k8"]) {
            Some("m16n8k16") => 16,
            Some(_) => 8,
            None => return unknown("shape"),
        };
        if !m.has("row") || !m.has("col") {
            return unknown("layout");
        }
        // In the opcode the types stand in the order D, A, B, C.
        let (td, ta, tb, tc) = (m.ty()?, m.ty()?, m.ty()?, m.ty()?);
        let bf16 = ta.kind == Kind::Bf;
        if ta != tb || !(bf16 || ta.is_float(16)) {
            return unknown("multiplicand types");
        }
        let (d_half, c_half) = (td.is_float(16), tc.is_float(16));
        if !(td.is_float(32) || d_half) || !(tc.is_float(32) || c_half) {
            return unknown("accumulator types");
        }
        if (bf16 || k == 8) && (d_half != c_half) || bf16 && d_half {
            return unknown("accumulator types");
        }
        if args.len() != 4 {
            return bad("4 operands are needed");
        }
        let d = Self::elements(&args[0])
            .iter()
            .map(|a| Ok(self.dst(a)?.index))
            .collect::<Result<Vec<_>>>()?;
        let a = self.sources(&args[1], B32)?;
        let b = self.sources(&args[2], B32)?;
        let c = self.sources(&args[3], if c_half { B32 } else { tc })?;
        let n = |half| if half { 2 } else { 4 };
        if a.len() != k / 4 || b.len() != k / 8 || c.len() != n(c_half) || d.len() != n(d_half) {
            return bad("fragments of the wrong length");
        }
        Ok(Op::Mma {
            shape: MmaShape {
                k,
                bf16,
                c_half,
                d_half,
            },
            d,
            a,
            b,
            c,
        })
    }
}
