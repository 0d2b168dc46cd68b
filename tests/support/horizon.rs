//! Calls that the horizon shortens, beside the same calls whole.

use std::fmt::Debug;

use flash_alibi::cpu::Element;
use flash_alibi::plan::{Call, Device, Dtype, Plan};
use flash_alibi::{Attention, Horizon, Inputs, cpu};
use half::{bf16, f16};
use ptx_emulator::{Class, Report};

use super::emulator::{Attended, OnDevice, Planner, Problem};
use super::paged::Paged;
use super::{Case, SlopeKind, UNTOUCHED};

/// What computes a call. All see the same keys, in one piece and in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The CPU, where it has so few rows that their scores tell what may be left out.
    CpuFew,
    /// The CPU's blocks of rows.
    Cpu,
    /// The CPU with radii that the cache keeps; both of the above.
    CpuRadii,
    /// The prefill kernels under the emulator; from a cache with radii too, wherever results are compared.
    Prefill,
    /// The kernels for decoding under the emulator, with radii that the cache keeps.
    Decode,
}

/// A call that a test may change.
pub struct Probe<T> {
    pub path: Path,
    pub case: Case,
    pub paged: Paged<T>,
    /// What the radii of a cache are relative to, in all channels of the first axis; or the mean of the keys.
    pub centre: Option<f32>,
    pub splits: usize,
    /// The result of the whole call, until something changes, and the last of the shortened one.
    whole: Option<Found<T>>,
    found: Option<Found<T>>,
}

/// What came out.
pub struct Found<T> {
    pub out: Vec<T>,
    pub lse: Vec<f32>,
    /// How much was computed, in units of the path.
    pub computed: u64,
    /// What was launched.
    pub kernels: Vec<String>,
}

/// How a shortened call compares with the whole.
#[derive(Debug, Clone, Copy)]
pub struct Compared {
    /// The part that was computed.
    pub part: f64,
    /// The largest difference, in parts of what the tolerance allows, rounding aside.
    pub spent: f64,
    /// The elements of out that differ.
    pub differ: usize,
}

impl Compared {
    /// The worse of two, in each respect.
    fn join(&mut self, other: Self) {
        self.part = self.part.max(other.part);
        self.spent = self.spent.max(other.spent);
        self.differ += other.differ;
    }
}

impl Path {
    /// Of keys, in a call with a head dimension of 64 at most, and no more than 64 rows.
    pub fn tile(self) -> usize {
        match self {
            Self::CpuFew | Self::Cpu | Self::CpuRadii | Self::Prefill => 128,
            Self::Decode => 64,
        }
    }

    /// For a call of one token: how many query heads share a key head, so that this path is taken.
    pub fn group(self) -> usize {
        match self {
            Self::Cpu => 8,
            _ => 1,
        }
    }
}

/// `head_dim`, of which only the first element is not zero.
pub fn along(value: f32) -> impl Fn(usize) -> f32 {
    move |c| if c == 0 { value } else { 0.0 }
}

/// Whether key `j` is of the sample whose mean is the centre.
pub fn sampled(keys: usize, j: usize) -> bool {
    j.is_multiple_of(keys.div_ceil(256))
}

impl<T: OnDevice> Probe<T> {
    pub fn new(path: Path, case: Case, page_size: usize) -> Self {
        Self {
            path,
            paged: case.lay_out_paged::<T>(page_size),
            case,
            centre: None,
            splits: 3,
            whole: None,
            found: None,
        }
    }

    /// One token over `keys` that are all zero, with queries along the first axis.
    pub fn along_an_axis(path: Path, keys: usize, slope: f32, tolerance: f32) -> Self {
        let case = Case {
            slopes: SlopeKind::All(slope),
            scale: Some(1.0),
            horizon: Horizon::Certified { tolerance },
            ..Case::dense(1, 1, keys, (path.group(), 1), 64)
        };
        let mut probe = Self::new(path, case, 16);
        probe.centre = Some(0.0);
        probe.set_queries(0, along(1.0));
        for j in 0..keys {
            probe.set_key(j, |_| 0.0);
        }
        probe
    }

    /// Where the heads of key `j` of a sequence begin, without pages and in them.
    fn places(&self, sequence: usize, j: usize) -> Vec<[usize; 2]> {
        let [b, row] = self.paged.dense.row_k(sequence, j);
        let place = |head| {
            [
                self.paged.dense.k.at([b, row, head]),
                self.paged.at(sequence, j, head),
            ]
        };
        (0..self.case.heads_k).map(place).collect()
    }

    /// Key `j` of the first sequence, in all heads.
    pub fn set_key(&mut self, j: usize, value: impl Fn(usize) -> f32) {
        for head in 0..self.case.heads_k {
            self.set_key_of(0, head, j, &value);
        }
    }

    fn set_key_of(&mut self, sequence: usize, head: usize, j: usize, value: impl Fn(usize) -> f32) {
        self.whole = None;
        let [dense, paged] = self.places(sequence, j)[head];
        for c in 0..self.case.head_dim {
            self.paged.dense.k.data[dense + c] = T::from_f32(value(c));
            self.paged.k.data[paged + c] = T::from_f32(value(c));
        }
    }

    /// All keys of a sequence in one head, by their places.
    pub fn set_keys_of(
        &mut self,
        sequence: usize,
        head: usize,
        value: impl Fn(usize, usize) -> f32,
    ) {
        for j in 0..self.case.sequences[sequence].k {
            self.set_key_of(sequence, head, j, |c| value(j, c));
        }
    }

    /// Value `j`, in all heads.
    pub fn set_value(&mut self, j: usize, value: impl Fn(usize) -> f32) {
        self.whole = None;
        for [dense, paged] in self.places(0, j) {
            for c in 0..self.case.head_dim {
                self.paged.dense.v.data[dense + c] = T::from_f32(value(c));
                self.paged.v.data[paged + c] = T::from_f32(value(c));
            }
        }
    }

    /// Token `i` of every sequence, in all heads.
    pub fn set_queries(&mut self, i: usize, value: impl Fn(usize) -> f32) {
        self.whole = None;
        for sequence in 0..self.case.sequences.len() {
            let [b, row] = self.paged.dense.row_q(sequence, i);
            for head in 0..self.case.heads_q() {
                let at = self.paged.dense.q.at([b, row, head]);
                for c in 0..self.case.head_dim {
                    self.paged.dense.q.data[at + c] = T::from_f32(value(c));
                }
            }
        }
    }

    /// With this horizon in place of the case's.
    pub fn attend(&mut self, horizon: Horizon) -> Found<T> {
        let attention = self.case.attention().with_horizon(horizon).unwrap();
        match self.path {
            Path::CpuFew | Path::Cpu => {
                let dense = on_cpu(&attention, &self.paged.dense.inputs());
                same_bits(dense, on_cpu(&attention, &self.paged.inputs()))
            }
            Path::CpuRadii => {
                self.keep_radii();
                on_cpu(&attention, &self.paged.inputs())
            }
            Path::Prefill => self.prefill(horizon, false),
            Path::Decode => {
                self.keep_radii();
                let splits = self.splits;
                let planner = move |attention: &Attention, call: &Call, device: &Device| {
                    Plan::decode_with_splits(attention, call, device, splits)
                };
                let attended = self.on_emulator(&attention, true, &planner);
                let decode = (attended.reports.iter())
                    .find(|report| report.kernel.starts_with("decode"))
                    .expect("something is computed");
                Found {
                    computed: copied(decode),
                    kernels: kernels(&attended.reports),
                    out: attended.out,
                    lse: attended.lse,
                }
            }
        }
    }

    /// By the prefill kernels.
    pub fn prefill(&self, horizon: Horizon, paged: bool) -> Found<T> {
        let attention = self.case.attention().with_horizon(horizon).unwrap();
        let attended = self.on_emulator(&attention, paged, &Plan::prefill);
        Found {
            computed: attended.tiles.chunks(2).map(|tiles| tiles[0]).sum(),
            kernels: kernels(&attended.reports),
            out: attended.out,
            lse: attended.lse,
        }
    }

    fn keep_radii(&mut self) {
        match self.centre {
            None => self.paged.keep_radii(true),
            Some(at) => {
                let centres = (0..self.case.heads_k * self.case.head_dim)
                    .map(|i| along(at)(i % self.case.head_dim));
                self.paged.keep_radii_around(centres.collect());
            }
        }
    }

    fn on_emulator(&self, attention: &Attention, paged: bool, planner: &Planner) -> Attended<T> {
        let out = self.paged.dense.out.like(T::from_f32(UNTOUCHED));
        let lse = vec![UNTOUCHED; self.paged.dense.lse_len()];
        let problem = self.paged.dense.problem(&out, Some(&lse));
        let problem = match paged {
            true => self.paged.of_pages(&problem),
            false => problem,
        };
        let problem = Problem {
            attention,
            ..problem
        };
        problem
            .attend(planner, 1)
            .unwrap_or_else(|e| panic!("{e}\n{:?}", self.case))
    }

    /// The largest value that is finite.
    fn largest_value(&self) -> f64 {
        let values = self
            .paged
            .v
            .data
            .iter()
            .map(|x| f64::from(x.to_f32().abs()));
        values.filter(|x| x.is_finite()).fold(0.0, f64::max)
    }

    /// Compares the call with that which computes everything: they differ by what the horizon allows, and by rounding.
    pub fn certify(&mut self) -> Result<Compared, String> {
        let whole = match self.whole.take() {
            Some(whole) => whole,
            None => self.attend(Horizon::Off),
        };
        let found = self.attend(self.case.horizon);
        let mut compared = self.compare(&whole, &found);
        if let (Path::Prefill, Ok(compared)) = (self.path, &mut compared) {
            self.keep_radii();
            let found = self.prefill(self.case.horizon, true);
            let with_radii = self.compare(&whole, &found);
            compared.join(with_radii.map_err(|why| format!("with radii: {why}"))?);
        }
        (self.whole, self.found) = (Some(whole), Some(found));
        compared
    }

    fn compare(&self, whole: &Found<T>, found: &Found<T>) -> Result<Compared, String> {
        let tolerance = match self.case.horizon {
            Horizon::Certified { tolerance } => f64::from(tolerance),
            Horizon::Off | Horizon::Bitwise => return self.compare_bits(whole, found),
        };
        let mut compared = Compared {
            part: found.computed as f64 / whole.computed as f64,
            spent: 0.0,
            differ: 0,
        };
        let largest = self.largest_value();
        let ulp = f64::from(epsilon::<T>());
        // Lists change which keys a part has, and so what weights are relative to when they are rounded to T.
        let weights = if self.path == Path::Decode {
            ulp / 8.0 * largest
        } else {
            0.0
        };
        for (i, (whole, found)) in whole.out.iter().zip(&found.out).enumerate() {
            let (whole, found) = (f64::from(whole.to_f32()), f64::from(found.to_f32()));
            if whole == found || whole.is_nan() && found.is_nan() {
                continue;
            }
            compared.differ += 1;
            let rounding = ulp * whole.abs().max(found.abs()) + weights + 2e-6;
            let spent = ((whole - found).abs() - rounding) / (2.0 * tolerance * largest);
            if spent > 1.0 || spent.is_nan() {
                return Err(format!("element {i} of out: {found}, whole {whole}"));
            }
            compared.spent = compared.spent.max(spent);
        }
        for (row, (whole, found)) in whole.lse.iter().zip(&found.lse).enumerate() {
            if whole == found || whole.is_nan() && found.is_nan() {
                continue;
            }
            let missing = f64::from(whole - found);
            let rounding = 1e-6 * f64::from(whole.abs()).max(1.0);
            let spent = (missing - rounding) / tolerance;
            if !(missing >= -rounding && spent <= 1.0) {
                return Err(format!("lse of row {row}: {found}, whole {whole}"));
            }
            compared.spent = compared.spent.max(spent);
        }
        Ok(compared)
    }

    fn compare_bits(&self, whole: &Found<T>, found: &Found<T>) -> Result<Compared, String> {
        let differ = |(a, b): &(&T, &T)| a.to_f32().to_bits() != b.to_f32().to_bits();
        let differ = whole.out.iter().zip(&found.out).filter(differ).count();
        let lse = |found: &Found<T>| found.lse.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        match differ == 0 && lse(whole) == lse(found) {
            true => Ok(Compared {
                part: found.computed as f64 / whole.computed as f64,
                spent: 0.0,
                differ,
            }),
            false => Err(format!("{differ} bits of out differ, or lse does")),
        }
    }

    #[track_caller]
    pub fn certified(&mut self) -> Compared {
        self.certify()
            .unwrap_or_else(|why| panic!("{why}\n{:?}, {:?}", self.path, self.case))
    }

    /// Compares what [`Self::certify`] found with the oracle, to the contract's tolerance.
    pub fn follow_the_oracle(&self) -> Result<(), String> {
        let rows = match (self.path, &self.found) {
            (Path::CpuFew | Path::Cpu, _) => self.paged.dense.attend_into()?,
            (Path::CpuRadii, _) => self.paged.attend()?,
            (_, Some(found)) => self.paged.dense.rows(&Attended {
                out: found.out.clone(),
                lse: found.lse.clone(),
                reports: Vec::new(),
                tiles: Vec::new(),
            })?,
            (_, None) => return Err("nothing was computed".into()),
        };
        self.paged.dense.check(&rows)
    }
}

fn on_cpu<T: Element>(attention: &Attention, inputs: &Inputs<'_, T>) -> Found<T> {
    let output = cpu::attend(attention, inputs).expect("the case is valid");
    Found {
        computed: output.report.kept(),
        kernels: Vec::new(),
        out: output.out,
        lse: output.lse,
    }
}

/// What is found without pages, if it is what is found with them.
#[track_caller]
pub fn same_bits<T: Element + Debug>(dense: Found<T>, paged: Found<T>) -> Found<T> {
    let bits = |found: &Found<T>| -> Vec<u32> {
        let out = found.out.iter().map(|x| x.to_f32());
        out.chain(found.lse.iter().copied())
            .map(f32::to_bits)
            .collect()
    };
    assert_eq!(
        dense.computed, paged.computed,
        "pages change what is left out"
    );
    assert!(bits(&dense) == bits(&paged), "pages change bits");
    dense
}

fn kernels(reports: &[Report]) -> Vec<String> {
    reports.iter().map(|report| report.kernel.clone()).collect()
}

/// The bytes of K, V and Q that were copied to shared memory.
pub fn copied(report: &Report) -> u64 {
    let copies = (report.lines.iter()).filter(|line| line.class == Class::AsyncCopy);
    copies.map(|line| line.counters.global_bytes).sum()
}

/// From 1 to the next number.
fn epsilon<T: OnDevice>() -> f32 {
    match T::DTYPE {
        Dtype::F16 => f16::EPSILON.to_f32(),
        Dtype::Bf16 => bf16::EPSILON.to_f32(),
    }
}

/// Scores with which a tile may just be left out: those of the nearest `shared` tiles each with their share of half of the
/// tolerance, and what is farther together with the other half. By the place of a tile and its distance; in f16.
pub fn whole_budget(
    tolerance: f32,
    slope: f32,
    keys: usize,
    sides: f32,
    shared: usize,
) -> impl Fn(usize, f32) -> f32 {
    let geometric = 1.0 / -(-slope).exp_m1();
    // Rounding leaves room for more than the slack that a bound has.
    let limit = move |geometric: f32| -(2.0 * sides * geometric / tolerance).ln() - 0.02;
    let tile = geometric.min(keys as f32);
    move |t, distance| {
        let t_f32 = t as f32;
        let norm = match t < shared {
            true => limit(tile) - (t_f32 * (t_f32 + 1.0)).ln() + slope * distance,
            false => limit(geometric) + slope * (distance - ((t - shared) * keys) as f32),
        };
        // Rounded down, and what rounding up makes of it fits too.
        let norm = norm - (norm.abs() + 60.0) * 0.5f32.powi(11);
        let rounded = f16::from_f32(norm);
        match rounded.to_f32() > norm {
            true if norm < 0.0 => f16::from_bits(rounded.to_bits() + 1).to_f32(),
            true => f16::from_bits(rounded.to_bits() - 1).to_f32(),
            false => rounded.to_f32(),
        }
    }
}
