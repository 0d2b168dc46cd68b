//! Machine code as `cuobjdump -sass` prints it, and the loop in which a kernel spends its time: the same way round that
//! `benches/model/loop.py` finds.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// An instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    address: u64,
    /// Whether a predicate stands before it.
    predicated: bool,
    /// With its suffixes.
    pub opcode: String,
    pub operands: Vec<String>,
}

impl Instruction {
    /// Reads ` /*0010*/  @P0 FFMA R1, R2, -16, R3 ;`.
    fn parse(line: &str) -> Option<Self> {
        let (address, text) = line.trim().strip_prefix("/*")?.split_once("*/")?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let text = text.split(';').next()?.trim();
        let (predicated, text) = match text.strip_prefix('@') {
            Some(rest) => (true, rest.split_once(' ')?.1.trim()),
            None => (false, text),
        };
        let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
        let operands = operands.split(',').map(|operand| operand.trim().to_owned());
        let starts = opcode.starts_with(|c: char| c.is_ascii_uppercase());
        starts.then(|| Self {
            address,
            predicated,
            opcode: opcode.to_owned(),
            operands: operands.filter(|operand| !operand.is_empty()).collect(),
        })
    }

    /// The first part of the opcode.
    pub fn name(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Of a branch: where it goes to.
    fn target(&self) -> Option<u64> {
        let address = self.operands.last()?.strip_prefix("0x")?;
        (self.name() == "BRA")
            .then(|| u64::from_str_radix(address, 16).ok())
            .flatten()
    }

    /// Whether the next instruction may follow a branch: its condition is a predicate or its first operand.
    fn may_go_on(&self) -> bool {
        self.predicated || self.operands.len() == 2
    }

    fn ends(&self) -> bool {
        matches!(self.name(), "EXIT" | "RET") && !self.predicated
    }

    /// How little a way round wants to pass it: it has all products and copies, and no path that few tiles take.
    fn cost(&self) -> i64 {
        match self.name() {
            "HMMA" | "HGMMA" | "LDGSTS" => -1000,
            "LDG" | "STG" if !self.predicated => 50_000,
            "CALL" if !self.predicated => 500_000,
            "EXIT" if !self.predicated => 10_000_000,
            "BAR" if self.opcode.starts_with("BAR.RED") => 3_000,
            _ => 1,
        }
    }

    fn class(&self) -> Class {
        match self.name() {
            "HMMA" | "HGMMA" | "FFMA" | "FMUL" | "FADD" | "FMNMX" | "MUFU" | "FSETP" | "FSEL"
            | "FSET" | "F2F" | "F2FP" | "I2F" | "I2FP" | "F2I" => Class::Math,
            "LDSM" | "LDGSTS" | "LDS" | "STS" | "LDG" | "STG" | "LDC" | "RED" | "ATOMG" | "LD"
            | "ST" | "LDL" | "STL" | "SHFL" => Class::Memory,
            _ => Class::Control,
        }
    }
}

enum Class {
    Math,
    Memory,
    Control,
}

/// The instructions of a steady loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loop {
    pub math: u32,
    pub memory: u32,
    pub control: u32,
}

impl Loop {
    pub fn of<'a>(way: impl IntoIterator<Item = &'a Instruction>) -> Self {
        let mut counted = Self::default();
        for instruction in way {
            match instruction.class() {
                Class::Math => counted.math += 1,
                Class::Memory => counted.memory += 1,
                Class::Control => counted.control += 1,
            }
        }
        counted
    }
}

/// The kernels of a file, by name and architecture.
pub fn parse(text: &str) -> BTreeMap<(String, String), Vec<Instruction>> {
    let mut kernels: BTreeMap<_, Vec<Instruction>> = BTreeMap::new();
    let (mut arch, mut name) = (String::new(), String::new());
    for line in text.lines() {
        let line = line.trim();
        if let Some(found) = line.strip_prefix("arch = ") {
            arch = found.into();
        } else if let Some(found) = line.strip_prefix("Function : ") {
            name = found.into();
        } else if let Some(instruction) = Instruction::parse(line) {
            let kernel = kernels.entry((name.clone(), arch.clone()));
            kernel.or_default().push(instruction);
        }
    }
    kernels
}

/// Where a straight part of the code ends, what it costs, and which instructions may follow.
struct Part {
    last: usize,
    cost: i64,
    onwards: Vec<usize>,
}

/// The cheapest way from a place to the head of a loop; `onwards` is `None` where there is none.
struct Way {
    cost: i64,
    last: usize,
    onwards: Option<usize>,
}

/// No way costs as much.
const NO_WAY: i64 = 100_000_000;

fn straight(code: &[Instruction], at: &HashMap<u64, usize>, start: usize, head: usize) -> Part {
    let (mut cost, mut n) = (0, start);
    loop {
        let instruction = &code[n];
        cost += instruction.cost();
        let jump = instruction
            .target()
            .filter(|_| instruction.opcode != "BRA.DIV");
        let onwards = if let Some(target) = jump.and_then(|target| at.get(&target)) {
            let next = (instruction.may_go_on() && n + 1 < code.len()).then_some(n + 1);
            Some([*target].into_iter().chain(next).collect())
        } else if instruction.ends() || n + 1 == code.len() {
            Some(Vec::new())
        } else if instruction.name() == "BSYNC" {
            Some(vec![n + 1])
        } else if n + 1 == head {
            Some(vec![head])
        } else {
            None
        };
        if let Some(onwards) = onwards {
            return Part {
                last: n,
                cost,
                onwards,
            };
        }
        n += 1;
    }
}

/// The cheapest way from `head` to itself.
fn way_round<'a>(
    code: &'a [Instruction],
    at: &HashMap<u64, usize>,
    head: usize,
) -> Option<Vec<&'a Instruction>> {
    let mut ways: HashMap<usize, Way> = HashMap::new();
    let mut parts: HashMap<usize, Part> = HashMap::new();
    // Depth first: a place is entered, and left once the places after it have been.
    let mut pending = vec![(head, false)];
    while let Some((start, entered)) = pending.pop() {
        if entered {
            let part = &parts[&start];
            let mut best = Way {
                cost: NO_WAY,
                last: part.last,
                onwards: None,
            };
            for &n in &part.onwards {
                let onwards = if n == head { 0 } else { ways[&n].cost };
                // Where there is no way, products before it do not make one.
                if onwards < NO_WAY && part.cost + onwards < best.cost {
                    let cost = part.cost + onwards;
                    best = Way {
                        cost,
                        last: part.last,
                        onwards: Some(n),
                    };
                }
            }
            ways.insert(start, best);
        } else if let Entry::Vacant(way) = ways.entry(start) {
            // On the way here: a way through it is no cheapest one.
            way.insert(Way {
                cost: NO_WAY,
                last: start,
                onwards: None,
            });
            let part = straight(code, at, start, head);
            pending.push((start, true));
            let after = part.onwards.iter().rev().filter(|&&n| n != head);
            pending.extend(after.map(|&n| (n, false)));
            parts.insert(start, part);
        }
    }
    let (mut way, mut n) = (Vec::new(), head);
    loop {
        let found = &ways[&n];
        way.extend(&code[n..=found.last]);
        n = found.onwards?;
        if n == head {
            return Some(way);
        }
    }
}

/// The loop with the most products: of several ways round, the shortest. None where a kernel has no products in a loop.
pub fn steady_loop(code: &[Instruction]) -> Option<Vec<&Instruction>> {
    let at: HashMap<u64, usize> = (code.iter().enumerate())
        .map(|(n, instruction)| (instruction.address, n))
        .collect();
    let products = |way: &[&Instruction]| way.iter().filter(|i| i.name().ends_with("MMA")).count();
    let heads: BTreeSet<usize> = (code.iter())
        .filter_map(|branch| branch.target().filter(|&target| target < branch.address))
        .filter_map(|target| at.get(&target).copied())
        .collect();
    heads
        .into_iter()
        .filter_map(|head| way_round(code, &at, head))
        .map(|way| (products(&way), way))
        .filter(|(products, _)| *products > 0)
        .max_by_key(|(products, way)| (*products, std::cmp::Reverse(way.len())))
        .map(|(_, way)| way)
}

#[test]
fn the_steady_loop_leaves_out_what_few_tiles_take() {
    let text = "arch = sm_80\n\tFunction : kernel\n\
        /*0000*/ MOV R1, c[0x0][0x28] ; /* 0x00 */\n\
        /*0010*/ BAR.SYNC 0x0 ;\n\
        /*0020*/ @P1 BRA 0xb0 ;\n\
        /*0030*/ LDGSTS.E.BYPASS.128 [R7], [R6.64], P0 ;\n\
        /*0040*/ LDSM.16.M88.4 R4, [R2] ;\n\
        /*0050*/ HMMA.16816.F32 R12, R4, R8, R12 ;\n\
        /*0060*/ FFMA R22, R20, R21, -R23 ;\n\
        /*0070*/ IADD3 R0, R0, 0x1, RZ ;\n\
        /*0080*/ @P2 BRA 0x10 ;\n\
        /*0090*/ EXIT ;\n\
        /*00a0*/ BRA 0xa0 ;\n\
        /*00b0*/ LDG.E R9, [R2.64] ;\n\
        /*00c0*/ BRA 0x30 ;\n";
    let kernels = parse(text);
    let code = &kernels[&("kernel".into(), "sm_80".into())];
    assert_eq!(code.len(), 13);
    let expected = Loop {
        math: 2,
        memory: 2,
        control: 4,
    };
    assert_eq!(steady_loop(code).map(Loop::of), Some(expected));
    // Without the product there is no such loop.
    let others: Vec<Instruction> = (code.iter())
        .filter(|instruction| instruction.name() != "HMMA")
        .cloned()
        .collect();
    assert_eq!(steady_loop(&others), None);
}
