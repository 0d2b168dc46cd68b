//! How calls that the horizon shortens compare with the same calls whole.

use flash_alibi::Horizon;
use flash_alibi::plan::Dtype;
use half::{bf16, f16};

use super::{Found, Path, Probe};
use crate::emulator::OnEmulator;
use crate::problem::Attended;

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

impl<T: OnEmulator> Probe<T> {
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
            _ => return self.compare_bits(whole, found),
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

    /// Panics where [`Self::certify`] finds something wrong.
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
            })?,
            (_, None) => return Err("nothing was computed".into()),
        };
        self.paged.dense.check(&rows)
    }
}

/// From 1 to the next number.
fn epsilon<T: OnEmulator>() -> f32 {
    match T::DTYPE {
        Dtype::F16 => f16::EPSILON.to_f32(),
        Dtype::Bf16 => bf16::EPSILON.to_f32(),
    }
}
