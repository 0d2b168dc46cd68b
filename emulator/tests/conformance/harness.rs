//! Runs a snippet of PTX once per row of a table, one thread per row, and compares.

use crate::coverage;
use ptx_emulator::{Fault, FaultKind, LaunchConfig, Memory, Module, Params, ParseError};
use std::fmt::Write;

/// Module header of every test.
pub const HEADER: &str = ".version 8.6\n.target sm_90a\n.address_size 64\n";

/// Collects the failures of one test, so that a run shows all of them.
pub struct Suite {
    failures: Vec<String>,
    cases: usize,
}

/// Runs a test and reports every mismatch in it at once.
pub fn suite(name: &str, test: impl FnOnce(&mut Suite)) {
    let mut s = Suite {
        failures: Vec::new(),
        cases: 0,
    };
    test(&mut s);
    assert!(s.cases > 0, "{name} checked nothing");
    assert!(
        s.failures.is_empty(),
        "{name}: {} of {} cases differ:\n{}",
        s.failures.len(),
        s.cases,
        s.failures.join("\n")
    );
}

fn width(kind: char) -> (&'static str, &'static str, u64) {
    match kind {
        'h' => ("b16", "b16", 0xffff),
        'r' => ("b32", "b32", 0xffff_ffff),
        'd' => ("b64", "b64", u64::MAX),
        'p' => ("pred", "b32", 1),
        _ => panic!("unknown register kind {kind}"),
    }
}

impl Suite {
    /// Every row of `rows` is the inputs and then the expected outputs.
    ///
    /// `sig` names the kinds of the inputs `%a`, `%b`, ... and of the outputs `%x`, `%y`, ...:
    /// `h`, `r`, `d` are 16, 32 and 64 bits, `p` is a predicate. `rr>r` is two words to one.
    pub fn op<const N: usize>(&mut self, sig: &str, code: &str, rows: &[[u64; N]]) {
        let inputs = sig.find('>').expect("signature");
        self.judge(sig, code, rows, |row, got| {
            let want: Vec<u64> = row[inputs..]
                .iter()
                .zip(sig[inputs + 1..].chars())
                .map(|(v, k)| v & width(k).2)
                .collect();
            (got != want).then(|| format!("want {want:x?}"))
        });
    }

    /// As `op`, with the expected value computed from the inputs.
    pub fn map<const N: usize>(
        &mut self,
        sig: &str,
        code: &str,
        rows: &[[u64; N]],
        f: impl Fn([u64; N]) -> u64,
    ) {
        let mask = width(sig.chars().last().expect("signature")).2;
        self.judge(sig, code, rows, |row, got| {
            let want = f(*row) & mask;
            (got != [want]).then(|| format!("want {want:#x}"))
        });
    }

    /// As `op`, with a judge of (row, outputs) that says what is wrong.
    pub fn judge<const N: usize>(
        &mut self,
        sig: &str,
        code: &str,
        rows: &[[u64; N]],
        judge: impl Fn(&[u64; N], &[u64]) -> Option<String>,
    ) {
        self.cases += rows.len();
        match table(sig, "", code, rows) {
            Err(e) => self.failures.push(format!("`{code}`: {e}")),
            Ok(outputs) => {
                for (i, (row, got)) in rows.iter().zip(&outputs).enumerate() {
                    if let Some(why) = judge(row, got) {
                        self.failures
                            .push(format!("`{code}` row {i} {row:x?}: got {got:x?}, {why}"));
                    }
                }
            }
        }
    }

    /// Compares the outputs of a whole kernel.
    pub fn same<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &[T], want: &[T]) {
        self.cases += want.len();
        if got.len() != want.len() {
            self.failures
                .push(format!("{what}: {} values, not {}", got.len(), want.len()));
        }
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            if g != w {
                self.failures
                    .push(format!("{what} [{i}]: got {g:x?}, want {w:x?}"));
            }
        }
    }

    /// The kernel of `text` must end with a fault that `kind` accepts, at the line marked `// BAD`.
    pub fn fault(
        &mut self,
        what: &str,
        text: &str,
        threads: u32,
        inputs: &[u64],
        kind: impl Fn(&FaultKind) -> bool,
    ) {
        self.cases += 1;
        let line = marked(text);
        let failure = match parse(text).map(|m| launch(&m, threads, inputs, 2048)) {
            Err(e) => e.to_string(),
            Ok(Ok(_)) => "no fault".to_owned(),
            Ok(Err(f)) if !kind(&f.kind) || f.place.ptx_line != line => {
                format!("not the fault of line {line}: {f}")
            }
            Ok(Err(_)) => return,
        };
        self.failures.push(format!("{what}: {failure}"));
    }

    /// The kernel of `text` must run and its first output words be `want`, in several schedules.
    pub fn runs(&mut self, what: &str, text: &str, threads: u32, inputs: &[u64], want: &[u64]) {
        for seed in 0..3 {
            let got = parse(text).map_err(|e| e.to_string()).and_then(|m| {
                scheduled(&m, threads, inputs, want.len(), seed).map_err(|e| e.to_string())
            });
            match got {
                Ok(got) => self.same(what, &got, want),
                Err(e) => {
                    self.cases += 1;
                    self.failures.push(format!("{what}: {e}"));
                }
            }
        }
    }
}

/// The line of a text that holds `// BAD`.
pub fn marked(text: &str) -> u32 {
    let at = |l: &str| l.contains("// BAD");
    assert_eq!(text.lines().filter(|l| at(l)).count(), 1, "{text}");
    text.lines().position(at).expect("a marked line") as u32 + 1
}

/// The outputs of `code` for each row; `decls` go before the kernel.
pub fn table<const N: usize>(
    sig: &str,
    decls: &str,
    code: &str,
    rows: &[[u64; N]],
) -> Result<Vec<Vec<u64>>, String> {
    let (ins, outs) = sig.split_once('>').expect("signature");
    let (nin, nout) = (ins.len(), outs.len());
    let mut body = String::new();
    let names = |set: &'static str, kinds: &str| -> Vec<(char, char)> {
        set.chars().zip(kinds.chars().collect::<Vec<_>>()).collect()
    };
    let (ins, outs) = (names("abcdefgh", ins), names("xyzw", outs));
    for (name, kind) in ins.iter().chain(&outs) {
        writeln!(body, ".reg .{} %{name};", width(*kind).0).expect("string");
    }
    writeln!(
        body,
        "mad.wide.u32 %in, %t, {}, %in; mad.wide.u32 %out, %t, {}, %out;",
        nin * 8,
        nout * 8
    )
    .expect("string");
    for (i, (name, kind)) in ins.iter().enumerate() {
        let at = i * 8;
        let line = match kind {
            'p' => format!("ld.global.b32 %tmp, [%in+{at}]; setp.ne.u32 %{name}, %tmp, 0;"),
            _ => format!("ld.global.{} %{name}, [%in+{at}];", width(*kind).1),
        };
        writeln!(body, "{line}").expect("string");
    }
    writeln!(body, "{code}").expect("string");
    for (i, (name, kind)) in outs.iter().enumerate() {
        let at = i * 8;
        let line = match kind {
            'p' => format!("selp.u32 %tmp, 1, 0, %{name}; st.global.b32 [%out+{at}], %tmp;"),
            _ => format!("st.global.{} [%out+{at}], %{name};", width(*kind).1),
        };
        writeln!(body, "{line}").expect("string");
    }
    let inputs: Vec<u64> = rows.iter().flat_map(|r| r[..nin].to_vec()).collect();
    let got = kernel(decls, &body, rows.len() as u32, &inputs, rows.len() * nout)?;
    Ok(got.chunks(nout).map(<[u64]>::to_vec).collect())
}

/// PTX text of a kernel `k` with these in scope: `%in` and `%out`, addresses of 64-bit words;
/// `%t`, the thread; `%lane`; scratch registers `%h`, `%r`, `%rd`, `%p`, `%q`; 16 KiB at `sm`.
pub fn text(decls: &str, body: &str) -> String {
    format!(
        "{HEADER}{decls}
.visible .entry k(.param .u64 p_in, .param .u64 p_out) {{
.reg .b64 %in, %out, %rd<24>;
.reg .b32 %t, %lane, %tmp, %r<48>;
.reg .b16 %h<16>;
.reg .pred %p, %q, %p<8>;
.shared .align 128 .b8 sm[16384];
ld.param.u64 %in, [p_in];
ld.param.u64 %out, [p_out];
mov.u32 %t, %tid.x;
mov.u32 %lane, %laneid;
{body}
ret;
}}
"
    )
}

/// Runs a kernel of one block and returns its output words.
pub fn kernel(
    decls: &str,
    body: &str,
    threads: u32,
    inputs: &[u64],
    outputs: usize,
) -> Result<Vec<u64>, String> {
    let text = text(decls, body);
    let module = parse(&text).map_err(|e| format!("{e}\n{text}"))?;
    launch(&module, threads, inputs, outputs).map_err(|e| e.to_string())
}

/// The module of a text, whose instructions count as run.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    let module = Module::parse(text)?;
    coverage::record(text, &module);
    Ok(module)
}

/// Launches the kernel `k` of a module.
pub fn launch(
    module: &Module,
    threads: u32,
    inputs: &[u64],
    outputs: usize,
) -> Result<Vec<u64>, Box<Fault>> {
    scheduled(module, threads, inputs, outputs, 0)
}

fn scheduled(
    module: &Module,
    threads: u32,
    inputs: &[u64],
    outputs: usize,
    seed: u64,
) -> Result<Vec<u64>, Box<Fault>> {
    let memory = Memory::new();
    let input = memory.upload(inputs).expect("memory");
    let output = memory.alloc_zeroed(outputs as u64 * 8).expect("memory");
    let params = Params::new().arg(input).arg(output);
    let config = LaunchConfig::new(1, threads).seed(seed);
    module.launch(&memory, "k", &config, params.as_bytes())?;
    Ok(memory.download(output, outputs).expect("memory"))
}

/// A negative number as the tables hold it.
pub const fn n(x: i64) -> u64 {
    x as u64
}

/// The bits of an `f32`.
pub const fn f(x: f32) -> u64 {
    x.to_bits() as u64
}

/// The bits of an `f64`.
pub const fn d(x: f64) -> u64 {
    x.to_bits()
}

/// The value of the bits of an `f32`.
pub fn val(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

/// Two 16-bit values in a word.
pub const fn pair(hi: u64, lo: u64) -> u64 {
    hi << 16 | lo
}

/// Reproducible pseudo-random words (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// A binary floating-point format: bits of exponent and of mantissa.
#[derive(Clone, Copy)]
pub struct Format(pub i32, pub i32);
pub const F32: Format = Format(8, 23);
pub const F16: Format = Format(5, 10);
pub const BF16: Format = Format(8, 7);

/// Rounding: `n` to nearest even, `z`, `m` and `p` to zero, minus and plus infinity.
pub type Mode = char;

impl Format {
    /// The value of an encoding; exact for every format here.
    pub fn decode(self, bits: u64) -> f64 {
        let Format(e, m) = self;
        let sign = if bits >> (e + m) & 1 == 1 { -1.0 } else { 1.0 };
        let exp = (bits >> m & ((1 << e) - 1)) as i32;
        let man = (bits & ((1 << m) - 1)) as f64;
        let bias = (1 << (e - 1)) - 1;
        let scale = f64::powi(2.0, -m);
        sign * if exp == (1 << e) - 1 {
            if man == 0.0 { f64::INFINITY } else { f64::NAN }
        } else if exp == 0 {
            man * scale * f64::powi(2.0, 1 - bias)
        } else {
            (1.0 + man * scale) * f64::powi(2.0, exp - bias)
        }
    }

    /// Rounds a value once (IEEE 754 section 4.3); NaN becomes all ones but the sign.
    pub fn encode(self, x: f64, mode: Mode) -> u64 {
        let Format(e, m) = self;
        let sign = u64::from(x.is_sign_negative()) << (e + m);
        let inf = ((1u64 << e) - 1) << m;
        if x.is_nan() {
            return (1 << (e + m)) - 1;
        }
        if x.is_infinite() {
            return sign | inf;
        }
        if x == 0.0 {
            return sign;
        }
        let bias = (1 << (e - 1)) - 1;
        let a = x.abs();
        let mut exp = a.log2().floor() as i32;
        while f64::powi(2.0, exp) > a {
            exp -= 1;
        }
        while f64::powi(2.0, exp + 1) <= a {
            exp += 1;
        }
        let unit = exp.max(1 - bias) - m;
        // Exact: a power of two scales, in two steps so that neither factor over- or underflows.
        let q = a * f64::powi(2.0, -unit / 2) * f64::powi(2.0, -unit - -unit / 2);
        let (low, rest) = (q.floor(), q - q.floor());
        let up = match mode {
            'n' => rest > 0.5 || rest == 0.5 && low % 2.0 == 1.0,
            'z' => false,
            'm' => rest > 0.0 && sign != 0,
            'p' => rest > 0.0 && sign == 0,
            _ => panic!("mode {mode}"),
        };
        let man = low as u64 + u64::from(up);
        // Adding a carry out of the mantissa to the exponent is what the encoding is made for.
        let bits = if unit > 1 - bias - m {
            (((unit + m + bias) as u64) << m) + (man - (1 << m))
        } else {
            man
        };
        if bits < inf {
            return sign | bits;
        }
        let to_inf = match mode {
            'n' => true,
            'z' => false,
            'm' => sign != 0,
            _ => sign == 0,
        };
        sign | if to_inf { inf } else { inf - 1 }
    }
}
