//! Calls that the horizon shortens, beside the same calls whole.

mod compare;

use std::fmt::Debug;

use flash_alibi::cpu::Element;
use flash_alibi::plan::{Call, Device, Plan};
use flash_alibi::{Attention, Horizon, Inputs, cpu};
use half::f16;
use ptx_emulator::{Class, Report};

pub use compare::Compared;

use crate::emulator::{Emulated, HOPPER, OnEmulator, Planner};
use crate::paged::Paged;
use crate::problem::Problem;
use crate::{Case, SlopeKind, UNTOUCHED};

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
    /// Those of compute capability 9.0, wherever they take the call.
    Hopper,
    /// The kernels for decoding under the emulator, with radii that the cache keeps.
    Decode,
}

/// A call that a test may change.
pub struct Probe<T> {
    /// What computes the call.
    pub path: Path,
    /// The call.
    pub case: Case,
    /// Its tensors, without pages and in them.
    pub paged: Paged<T>,
    /// What the radii of a cache are relative to, in all channels of the first axis; or the mean of the keys.
    pub centre: Option<f32>,
    /// Into how many parts decoding divides the keys.
    pub splits: usize,
    /// The result of the whole call, until something changes, and the last of the shortened one.
    whole: Option<Found<T>>,
    found: Option<Found<T>>,
}

/// What came out.
pub struct Found<T> {
    /// As the case lays it out.
    pub out: Vec<T>,
    /// As the case lays it out.
    pub lse: Vec<f32>,
    /// How much was computed, in units of the path.
    pub computed: u64,
    /// What was launched.
    pub kernels: Vec<String>,
}

impl Path {
    /// Of keys, in a call with a head dimension of 64 at most, and no more than 64 rows.
    pub fn tile(self) -> usize {
        match self {
            Self::CpuFew | Self::Cpu | Self::CpuRadii | Self::Hopper => 128,
            Self::Prefill | Self::Decode => 64,
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

impl<T: OnEmulator> Probe<T> {
    /// Of the case, in pages of this size.
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
            Path::Prefill | Path::Hopper => self.prefill(horizon, false),
            Path::Decode => {
                self.keep_radii();
                let splits = self.splits;
                let planner = move |attention: &Attention, call: &Call, device: &Device| {
                    Plan::decode_with_splits(attention, call, device, splits)
                };
                let emulated = self.on_emulator(&attention, true, &planner);
                let decode = (emulated.reports.iter())
                    .find(|report| report.kernel.starts_with("decode"))
                    .expect("something is computed");
                Found {
                    computed: copied(decode),
                    kernels: kernels(&emulated.reports),
                    out: emulated.attended.out,
                    lse: emulated.attended.lse,
                }
            }
        }
    }

    /// By the prefill kernels.
    pub fn prefill(&self, horizon: Horizon, paged: bool) -> Found<T> {
        let attention = self.case.attention().with_horizon(horizon).unwrap();
        let on_hopper = self.path == Path::Hopper;
        let planner = move |attention: &Attention, call: &Call, device: &Device| {
            Plan::prefill(attention, call, if on_hopper { &HOPPER } else { device })
        };
        let emulated = self.on_emulator(&attention, paged, &planner);
        let kernels = kernels(&emulated.reports);
        let by_wgmma = kernels.iter().any(|kernel| kernel.starts_with("wgmma"));
        let expected = on_hopper && attention.scale() > 0.0;
        assert_eq!(by_wgmma, expected, "{kernels:?}");
        Found {
            computed: emulated.tiles.chunks(2).map(|tiles| tiles[0]).sum(),
            kernels,
            out: emulated.attended.out,
            lse: emulated.attended.lse,
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

    fn on_emulator(&self, attention: &Attention, paged: bool, planner: &Planner) -> Emulated<T> {
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
            .emulate(planner, 1)
            .unwrap_or_else(|e| panic!("{e}\n{:?}", self.case))
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
