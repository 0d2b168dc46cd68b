//! Which modifiers go with an opcode, and with each other. Families check the rest themselves.

use super::Res;
use super::ty::Ty;

/// Of each list at most one is given.
const ROUNDINGS: &[&str] = &["rn", "rz", "rm", "rp", "approx", "full"];
const PARTS: &[&str] = &["lo", "hi", "wide"];
const ORDERS: &[&str] = &[
    "weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio",
];
const SCOPES: &[&str] = &["cta", "cluster", "gpu", "sys"];
const SPACES: &[&str] = &[
    "global",
    "shared",
    "shared::cta",
    "shared::cluster",
    "local",
    "const",
    "param",
    "param::entry",
    "param::func",
];

/// Refuses modifiers that do not go together.
pub(super) fn check(name: &str, m: &[&str]) -> Res<()> {
    let given = |list: &[&str]| m.iter().filter(|s| list.contains(s)).count();
    let at_most_one = |lists: &[&[&str]]| match lists.iter().all(|list| given(list) <= 1) {
        true => Ok(()),
        false => Err("modifiers that exclude each other".to_owned()),
    };
    match name {
        "ld" | "st" | "atom" | "red" => {
            at_most_one(&[ORDERS, SCOPES, SPACES])?;
            let ordered = given(&["relaxed", "acquire", "release", "acq_rel"]) == 1;
            let scoped = given(SCOPES) == 1;
            match name {
                "ld" | "st" if ordered != scoped && given(&["mmio"]) == 0 => {
                    Err("an order and a scope go together".into())
                }
                "atom" | "red" if given(&["weak", "volatile", "mmio"]) > 0 => Err(String::new()),
                _ => Ok(()),
            }
        }
        "fence" if m.first() != Some(&"proxy") => {
            at_most_one(&[SCOPES, &["sc", "acq_rel", "acquire", "release"]])?;
            match given(SCOPES) == 1 && given(&["gl"]) == 0 {
                true => Ok(()),
                false => Err("expected a scope".into()),
            }
        }
        "fence" | "membar" if m == ["proxy"] => Err("expected a kind of proxy".into()),
        "cvt" => at_most_one(&[ROUNDINGS]),
        _ => arithmetic(name, m),
    }
}

fn arithmetic(name: &str, m: &[&str]) -> Res<()> {
    let Some((ty, m)) = m.split_last() else {
        return Ok(());
    };
    let Some(ty) = Ty::parse(ty) else {
        return Ok(());
    };
    let round = &ROUNDINGS[..4];
    let allowed: &[&[&str]] = match (ty, name) {
        (Ty::F32, "add" | "sub" | "mul" | "fma" | "mad") => &[round, &["ftz", "sat"]],
        (Ty::F32, "div") => &[ROUNDINGS, &["ftz"]],
        (Ty::F32, "rcp" | "sqrt") => &[round, &["approx", "ftz"]],
        (Ty::F32, "rsqrt" | "ex2" | "lg2" | "sin" | "cos") => &[&["approx", "ftz"]],
        (Ty::F32, "tanh") => &[&["approx"]],
        (Ty::F32, "abs" | "neg") => &[&["ftz"]],
        (Ty::F32, "min" | "max") => &[&["ftz", "NaN", "xorsign", "abs"]],
        (Ty::F64, "add" | "sub" | "mul" | "fma" | "mad" | "div" | "sqrt") => &[round],
        (Ty::F64, "rcp") => &[round, &["approx", "ftz"]],
        (Ty::F64, "rsqrt") => &[&["approx", "ftz"]],
        (Ty::F64, "abs" | "neg" | "min" | "max") => &[],
        _ if ty.float() => return Ok(()),
        (_, "add" | "sub") => &[&["sat", "cc"]],
        (_, "addc" | "subc") => &[&["cc"]],
        (_, "mul") => &[PARTS],
        (_, "mad" | "madc") => &[PARTS, &["sat", "cc"]],
        (_, "mul24" | "mad24") if m.is_empty() => return Err("expected `.lo` or `.hi`".into()),
        (_, "and" | "or" | "xor" | "not" | "cnot" | "shl" | "brev")
            if !matches!(ty, Ty::B16 | Ty::B32 | Ty::B64 | Ty::Pred) =>
        {
            return Err("expected a type of bits".into());
        }
        (_, "div" | "rem" | "min" | "max" | "neg" | "abs" | "and" | "or" | "xor" | "not") => &[],
        (_, "shl" | "shr") => &[],
        _ => return Ok(()),
    };
    if let Some(s) = m
        .iter()
        .find(|s| !allowed.iter().any(|list| list.contains(s)))
    {
        return Err(format!("modifier `.{s}`"));
    }
    let repeated = |list: &[&str]| m.iter().filter(|s| list.contains(s)).count() > 1;
    match repeated(ROUNDINGS) || repeated(PARTS) {
        true => Err("modifiers that exclude each other".into()),
        false => Ok(()),
    }
}
