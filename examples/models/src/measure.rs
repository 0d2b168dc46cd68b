//! A layer with the horizon and without.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use flash_alibi::cpu::{self, Element, Output};
use flash_alibi::{Attention, Horizon, Inputs, View};
use half::f16;
use serde_json::json;

use crate::layer::Problem;

/// What a horizon leaves out of a layer, saves and changes.
pub struct Measured {
    /// Of each head.
    pub slopes: Vec<f32>,
    /// Of each head and distance, in tiles: the pairs of a query and a tile of keys that were computed, and all.
    pub pairs: Vec<Vec<(u64, u64)>>,
    dense: Duration,
    horizon: Duration,
    out: Error,
    lse: Error,
    /// Outputs in f16 that differ, and all; and those that differ with a bitwise horizon, lse included.
    differ: (usize, usize),
    differ_bitwise: usize,
}

/// A largest error, and what is certified: more can only be the rounding of f32.
struct Error {
    found: f32,
    certified: f32,
}

/// Computes the layer both ways, in f32 and in f16.
pub fn measure(problem: &Problem, tolerance: f32) -> Result<Measured> {
    let attention = |horizon| problem.attention.clone().with_horizon(horizon);
    let (dense, horizon) = (
        attention(Horizon::Off)?,
        attention(Horizon::Certified { tolerance })?,
    );
    let [q, k, v] = [&problem.q, &problem.k, &problem.v];
    let (whole, dense_time) = timed(problem, &dense, [q, k, v])?;
    let (found, horizon_time) = timed(problem, &horizon, [q, k, v])?;

    let [q, k, v] = [q, k, v].map(|x| x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>());
    let in_f16 = |attention: &Attention| attend(problem, attention, [&q, &k, &v]);
    let (whole_f16, found_f16) = (in_f16(&dense)?, in_f16(&horizon)?);
    let bitwise = in_f16(&attention(Horizon::Bitwise)?)?;
    let differ = |found: &Output<f16>| {
        let pairs = whole_f16.out.iter().zip(&found.out);
        pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count()
    };
    let pairs = whole_f16.lse.iter().zip(&bitwise.lse);
    let differ_lse = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();

    let largest = |x: &[f32]| x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let difference = |a: &[f32], b: &[f32]| {
        let differences: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        largest(&differences)
    };
    Ok(Measured {
        slopes: problem.attention.slopes().as_slice().to_vec(),
        pairs: (0..problem.attention.heads_q())
            .map(|head| {
                found
                    .report
                    .of_head(head)
                    .filter(|&(_, all)| all > 0)
                    .collect()
            })
            .collect(),
        dense: dense_time,
        horizon: horizon_time,
        out: Error {
            found: difference(&whole.out, &found.out),
            certified: 2.0 * tolerance * largest(&problem.v),
        },
        lse: Error {
            found: difference(&whole.lse, &found.lse),
            certified: tolerance,
        },
        differ: (differ(&found_f16), whole_f16.out.len()),
        differ_bitwise: differ(&bitwise) + differ_lse,
    })
}

/// How many keys a query computes in the mean, of all heads.
pub fn computed_keys(problem: &Problem, tolerance: f32) -> Result<f64> {
    let attention = &problem.attention;
    let horizon = Horizon::Certified { tolerance };
    let attention = attention.clone().with_horizon(horizon)?;
    let report = attend(problem, &attention, [&problem.q, &problem.k, &problem.v])?.report;
    // A query sees half of the keys in the mean.
    let seen = (problem.tokens + 1) as f64 / 2.0;
    Ok(seen * report.kept() as f64 / report.total() as f64)
}

fn attend<T: Element>(
    problem: &Problem,
    attention: &Attention,
    [q, k, v]: [&Vec<T>; 3],
) -> Result<Output<T>> {
    let shape = [1, problem.tokens, attention.heads_q(), attention.head_dim()];
    let view = |x| View::new(x, &shape);
    Ok(cpu::attend(
        attention,
        &Inputs::new(view(q)?, view(k)?, view(v)?),
    )?)
}

/// The shortest time of three, or of fewer when they are long.
fn timed(
    problem: &Problem,
    attention: &Attention,
    tensors: [&Vec<f32>; 3],
) -> Result<(Output<f32>, Duration)> {
    let begin = Instant::now();
    let mut shortest = Duration::MAX;
    loop {
        let start = Instant::now();
        let output = attend(problem, attention, tensors)?;
        shortest = shortest.min(start.elapsed());
        if begin.elapsed() > 3 * shortest || begin.elapsed() > Duration::from_secs(20) {
            return Ok((output, shortest));
        }
    }
}

impl Measured {
    /// Computed, and all.
    pub fn total(&self) -> (u64, u64) {
        let pairs = self.pairs.iter().flatten();
        pairs.fold((0, 0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
    }

    /// All of it.
    pub fn json(&self) -> serde_json::Value {
        let (computed, all) = self.total();
        let heads: Vec<_> = (self.pairs.iter().zip(&self.slopes))
            .map(|(pairs, slope)| {
                let (computed, all): (Vec<u64>, Vec<u64>) = pairs.iter().copied().unzip();
                json!({"slope": slope, "computed": computed, "all": all})
            })
            .collect();
        json!({
            "computed": computed,
            "all": all,
            "heads": heads,
            "seconds": {"dense": self.dense.as_secs_f64(), "horizon": self.horizon.as_secs_f64()},
            "out": {"error": self.out.found, "certified": self.out.certified},
            "lse": {"error": self.lse.found, "certified": self.lse.certified},
            "f16": {"differ": self.differ.0, "all": self.differ.1, "differ_bitwise": self.differ_bitwise},
        })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (computed, all) = self.total();
        let (dense, horizon) = (self.dense.as_secs_f64(), self.horizon.as_secs_f64());
        write!(
            f,
            "{:7.1}%  {dense:8.3}  {horizon:10.3}  {:5.2}x  {:21}    {:21}    {} of {}, bitwise {}",
            100.0 * computed as f64 / all as f64,
            dense / horizon,
            format!("{:.1e} ({:.1e})", self.out.found, self.out.certified),
            format!("{:.1e} ({:.1e})", self.lse.found, self.lse.certified),
            self.differ.0,
            self.differ.1,
            self.differ_bitwise,
        )
    }
}
