//! The certified horizon: which keys cannot change the result, and why.
//!
//! Every path that leaves out keys decides here, or by these formulas (`kernels/common/horizon.cuh`).
//!
//! # Theorem
//!
//! A row `i` has the scores `x_j = s_j - m |i - j|`, with a slope `m > 0`. Keys come in tiles of `T`, from the nearest
//! outwards: tile `t >= 1` is the `t`-th after the nearest one, which is always kept, and `d` is the distance from the row
//! to the nearest key of a tile. `Z_K` is the sum of `e^x` over the kept keys, `Z_P` over the pruned ones.
//!
//! **Bound of a score.** For any vector `c`, `s_j = scale q.k_j <= scale q.c + |scale| |q| |k_j - c| <= u + a R`, with
//! `u = scale q.c`, `a = |scale| |q|` and `R` the largest `|k_j - c|` of the tile (Cauchy and Schwarz). A softcap is
//! monotone, so it may be applied to both sides.
//!
//! **Bound of what is kept.** `Z_K >= e^M` for the score `M` of any kept key: the running maximum, even a stale one.
//!
//! **Bound of a tile.** On one side of the row distances differ by one at least, so the keys of a tile sum up to at most
//! `g e^(u + a R - m d)`, `g = min(T, 1 / (1 - e^-m))`, and a tile and everything farther to at most
//! `G e^(u + a R' - m d)`, `G = 1 / (1 - e^-m)` and `R'` the largest `R` of the tile and of everything farther.
//!
//! **Theorem.** If a tile is pruned only where
//! - (A) `u + a R' - m d - M <= -ln(2 G / eps)`, and then everything farther with it, or
//! - (B) `u + a R - m d - M <= -ln(2 g t (t + 1) / eps)`,
//!
//! then `Z_P <= eps Z_K`. *Proof.* What (A) prunes is one tail, of at most `(eps / 2) e^M`. What (B) prunes of tile `t` is
//! at most `(eps / 2) e^M / (t (t + 1))`, and `1 / (t (t + 1))` sums to 1 over all `t`. With keys on both sides, each side
//! has half of `eps`. ∎
//!
//! (B) needs the `t (t + 1)`: the tiles that it prunes differ in `R`, so that they are no tail, and a budget for one tail
//! is exceeded by keys whose norms grow with the distance.
//!
//! **Computed scores.** Where the scores of a tile have been computed, it can still be left out by the largest of them, `X`:
//! (B) with `X` in place of `u + a R - m d`, and `T` in place of `g`. The keys may have that score all alike, whatever their
//! distances: norms that rise as the bias falls do it, so nothing geometric is left to sum.
//!
//! **Corollary.** With `pi = Z_P / (Z_K + Z_P) <= eps`, per channel `|out - out_kept| <= 2 pi max|v|`, since
//! `out - out_kept = pi (mean of the pruned v - mean of the kept v)`, and `0 <= lse - lse_kept = ln(1 + Z_P / Z_K) <= eps`.
//!
//! **Rounding.** The inequalities are of real numbers; scores are computed in f32. `slack` covers both a score and `M`:
//! `2 (head_dim + 4) 2^-22 |scale| |q| max|k|` for the dot products, `2 * 2^-23 m d` for the bias, and `2^-20` of a
//! softcap. Kernels whose dot products begin with the bias within a tile have that bias beside `|scale| |q| max|k|`. Norms are
//! rounded up. Each test is written so that a NaN keeps the tile.
//!
//! **Bitwise.** Where `u + a R - m d - M` is so low that every weight `e^(x - M)` underflows to 0, the tile adds zeros: it
//! is skipped with no change at all.

use std::f64::consts::LOG2_E;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, value};

/// Whether keys that cannot change the result are left out.
///
/// ALiBi takes `slope * distance` from every score, so keys that are far enough weigh nothing. How far that is depends on the
/// slope, the queries and the keys. A tile of keys is left out only where a bound of its scores proves that all that is left
/// out of a row weighs at most the tolerance, whatever the input. The field's word for it is tile skipping; this one has a
/// proof.
///
/// # What is guaranteed
/// What is left out of a row has at most `tolerance` of the row's weights, which sum to 1. So, in exact arithmetic, an output
/// differs from the one over every key by at most `2 * tolerance * max|v|`, and an lse by at most `tolerance`; what is computed
/// is rounded as without a horizon. With the default of 2^-24 the difference is a 4096th of what rounding to f16 alone can
/// change, and a 32768th for bf16, so hardly any result differs in a bit. [`Horizon::Bitwise`] promises that none does.
///
/// The bounds hold for norms that grow with the distance, for attention sinks and for keys with a large mean: those cost
/// speed, not exactness. A NaN or an infinity in a query or a key is never left out.
///
/// # What is not
/// - Values that are left out are usually not read: a NaN or an infinity among them need not reach an output.
/// - Which tiles are left out depends on all rows of a block. With a certified horizon, the last bits of a row can therefore
///   depend on how a prompt is cut into chunks, as they do on a GPU anyway. In a cache that keeps radii they can also depend on
///   its pages and centres. They never depend on the other sequences of a call.
///
/// # What is left out
/// Nothing is left out for heads whose slope is not positive, nor in sequences of which fewer than 2048 keys are seen.
/// Otherwise `slope * distance` decides: where scores have a standard deviation of 1, keys beyond a distance of about
/// `20 / slope` are left out. Geometric slopes ([Press et al., 2022]) reach from 1/2 to 2^-8, so that some heads see a hundred
/// keys, and the gentlest some five thousand. Causal prefill then does about a quarter of the work at 16384 tokens, and a
/// fifteenth at 65536. MPT-7B-StoryWriter (`alibi_bias_max` 16) has slopes down to 2^-16, for which nothing is far: half of the
/// work remains at 65536 tokens.
///
/// Prompts need nothing more: a first pass over their keys bounds them. A prompt that comes in chunks repeats that pass for
/// each chunk, and for a token that is decoded the pass would cost as much as it saves. A cache that keeps the radii of its
/// pages spares both the pass ([`cpu::append_with_radii`](crate::cpu::append_with_radii), `cuda::Layer::append_with_radii`,
/// `candle::append_with_radii`). When decoding without radii, a GPU leaves nothing out, and a CPU computes all scores and
/// leaves out values.
///
/// # Relatives
/// Adaptive Computation Pruning for the Forgetting Transformer ([Lin et al., 2025]) leaves out what a bound proves to be small
/// there; ALiBi is that model with constant forget gates. Its bound has one norm for a head and grows with the length. Quest
/// ([Tang et al., 2024]) bounds the scores of pages, and takes the best few without a proof that these suffice. BLASST
/// ([Yuan et al., 2025]) leaves out values once scores are known, by a calibrated threshold.
///
/// [Press et al., 2022]: https://arxiv.org/abs/2108.12409
/// [Lin et al., 2025]: https://arxiv.org/abs/2504.06949
/// [Tang et al., 2024]: https://arxiv.org/abs/2406.10774
/// [Yuan et al., 2025]: https://arxiv.org/abs/2512.12087
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Horizon {
    /// Every key is computed.
    Off,
    /// What is left out weighs at most `tolerance` of a row.
    Certified {
        /// A fraction of a row's weights: above 0, and at most 0.5.
        tolerance: f32,
    },
    /// Only keys whose weights underflow to 0 are left out: the result is that of [`Horizon::Off`], bit by bit, for values
    /// that are finite.
    Bitwise,
}

impl Default for Horizon {
    /// Certified at 2^-24, the weight of the last bit of an f32: below what f16 and bf16 results can show.
    fn default() -> Self {
        Self::Certified {
            tolerance: 0.5f32.powi(24),
        }
    }
}

/// As programs name it in their arguments: `off`, `bitwise`, `certified` at the default tolerance, or `certified:1e-6` at another.
/// [`Display`](fmt::Display) writes the same.
impl FromStr for Horizon {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let horizon = match name {
            "off" => Some(Self::Off),
            "certified" => Some(Self::default()),
            "bitwise" => Some(Self::Bitwise),
            _ => (name.strip_prefix("certified:"))
                .and_then(|tolerance| tolerance.parse().ok())
                .map(|tolerance| Self::Certified { tolerance }),
        };
        let expected = "off, bitwise, certified, or certified:TOLERANCE";
        let horizon = horizon.ok_or_else(|| value("horizon", name, expected))?;
        horizon.check()?;
        Ok(horizon)
    }
}

impl fmt::Display for Horizon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            certified if *certified == Self::default() => f.write_str("certified"),
            Self::Certified { tolerance } => write!(f, "certified:{tolerance:e}"),
            Self::Bitwise => f.write_str("bitwise"),
        }
    }
}

impl Horizon {
    /// The share of a row's weights that may be left out. An output then differs by at most `2 * tolerance * max|v|` from the
    /// one over every key, and an lse by at most `tolerance`.
    pub fn tolerance(self) -> f32 {
        match self {
            Self::Certified { tolerance } => tolerance,
            Self::Off | Self::Bitwise => 0.0,
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Certified { tolerance } if !(tolerance > 0.0 && tolerance <= 0.5) => {
                Err(value("tolerance", tolerance, "above 0, and at most 0.5"))
            }
            _ => Ok(()),
        }
    }
}

/// Sequences with fewer keys are computed whole: there is little to leave out.
pub(crate) use crate::limits::MIN_HORIZON_KEYS as MIN_KEYS;

/// What the tests of one head compare with, in units of log2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// The slope, for each position.
    slope: f64,
    /// (A).
    tail: f64,
    /// (B), without `t (t + 1)`: by a bound of the tile's scores, and by the largest of them.
    tile: f64,
    computed: f64,
    /// Whether the tiles share a tolerance: whether `t (t + 1)` counts.
    shared: bool,
    /// Whether `M` must be the maximum that the weights are relative to.
    pub(crate) exact: bool,
}

impl Budget {
    /// For a slope in natural units, keys on one or two `sides`, tiles of `keys`, and weights that are 0 from
    /// `2^-underflow` down. None where nothing is left out.
    pub(crate) fn new(
        horizon: Horizon,
        slope: f32,
        sides: u32,
        keys: usize,
        underflow: f64,
    ) -> Option<Self> {
        let slope = f64::from(slope);
        if slope <= 0.0 {
            return None;
        }
        let slope_log2 = slope * LOG2_E;
        match horizon {
            Horizon::Off => None,
            Horizon::Bitwise => Some(Self {
                slope: slope_log2,
                tail: underflow,
                tile: underflow,
                computed: underflow,
                shared: false,
                exact: true,
            }),
            Horizon::Certified { tolerance } => {
                let half = f64::from(tolerance) / f64::from(2 * sides);
                let (geometric, keys) = (1.0 / -(-slope).exp_m1(), keys as f64);
                Some(Self {
                    slope: slope_log2,
                    tail: (geometric / half).log2(),
                    tile: (geometric.min(keys) / half).log2(),
                    computed: (keys / half).log2(),
                    shared: true,
                    exact: false,
                })
            }
        }
    }

    /// (A).
    fn stops(&self, above: f64, max: f32) -> bool {
        above - f64::from(max) <= -self.tail
    }

    /// (B), by a bound of the tile's scores at its distance.
    fn skips(&self, above: f64, max: f32, share: f64) -> bool {
        above - f64::from(max) <= -(self.tile + self.share(share))
    }

    /// (B), by the largest of the tile's scores, biases included.
    pub(crate) fn skips_computed(&self, top: f32, max: f32, share: f64) -> bool {
        f64::from(top) - f64::from(max) <= -(self.computed + self.share(share))
    }

    fn share(&self, share: f64) -> f64 {
        if self.shared { share } else { 0.0 }
    }
}

/// `log2(t (t + 1))`: the share of the `t`-th tile.
pub(crate) fn share(t: usize) -> f64 {
    (t as f64 * (t as f64 + 1.0)).log2()
}

/// What is known of the keys of a tile, relative to a centre.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Radii {
    /// `R`.
    pub(crate) tile: f32,
    /// `R'`.
    pub(crate) farther: f32,
}

/// What becomes of a tile, in the order of what may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Keep,
    Skip,
    /// Skip it, and everything farther.
    Stop,
}

/// What bounds the scores of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowBound {
    budget: Budget,
    /// `u`, in natural units.
    centre: f64,
    /// `a`.
    reach: f64,
    cap: Option<f64>,
    slack: f64,
}

impl RowBound {
    /// `dot` is `q.c`, `norm` is `|q|`, `key_norm` the largest `|k|`, rounded up.
    pub(crate) fn new(
        budget: Budget,
        (scale, softcap): (f32, Option<f32>),
        head_dim: usize,
        (dot, norm): (f64, f64),
        key_norm: f32,
    ) -> Self {
        let scale = f64::from(scale);
        let (reach, cap) = (scale.abs() * norm, softcap.map(f64::from));
        let dots = 2.0 * (head_dim as f64 + 4.0) * 0.5f64.powi(22) * reach * f64::from(key_norm);
        Self {
            budget,
            centre: scale * dot,
            reach,
            cap,
            slack: (dots + cap.unwrap_or(0.0) * 0.5f64.powi(20)) * LOG2_E,
        }
    }

    /// At least every score of the keys within `radius` of the centre, at `distance` or farther; in units of log2.
    fn above(&self, radius: f32, distance: f64) -> f64 {
        let score = self.centre + self.reach * f64::from(radius);
        let capped = match self.cap {
            Some(cap) => cap * (score / cap).tanh(),
            None => score,
        };
        capped * LOG2_E + self.slack - self.budget.slope * distance * (1.0 - 0.5f64.powi(22))
    }

    /// Whether a tile may be skipped whose scores have been computed: the largest is `top`.
    pub(crate) fn skips_computed(&self, top: f32, max: f32, share: f64) -> bool {
        self.budget.skips_computed(top, max, share)
    }

    /// What becomes of the tile at `distance`, whose share is `share`, if the row has kept a score of `max`, in units of
    /// log2.
    pub(crate) fn verdict(&self, radii: Radii, distance: f64, share: f64, max: f32) -> Verdict {
        if self.budget.stops(self.above(radii.farther, distance), max) {
            Verdict::Stop
        } else if (self.budget).skips(self.above(radii.tile, distance), max, share) {
            Verdict::Skip
        } else {
            Verdict::Keep
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn tiles_at_the_thresholds_are_left_out_and_no_others() {
        let (tolerance, slope) = (0.5f64.powi(24), 0.25f32);
        let geometric = 1.0 / (1.0 - (-0.25f64).exp());
        for sides in [1, 2] {
            let budget = Budget::new(Horizon::default(), slope, sides, 128, 126.0).unwrap();
            let of = |weights: f64| (2.0 * f64::from(sides) * weights / tolerance).log2();
            let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
            assert!(close(budget.tail, of(geometric)) && close(budget.tile, of(geometric)));
            assert!(close(budget.computed, of(128.0)));
            let at = -budget.tail;
            assert!(budget.stops(at, 0.0) && !budget.stops(at.next_up(), 0.0));
            let at = -(budget.tile + share(3));
            let skips = |above| budget.skips(above, 0.0, share(3));
            assert!(skips(at) && !skips(at.next_up()));
            let at = -(budget.computed + share(3)) as f32;
            let skips = |top: f32| budget.skips_computed(top, 0.0, share(3));
            assert!(skips(at.next_down()) && !skips(at.next_up()));
            // Whatever is not a number keeps the tile.
            for (above, max) in [(f64::NAN, 0.0), (-1e9, f32::NAN)] {
                assert!(!budget.stops(above, max) && !budget.skips(above, max, 0.0));
                assert!(!budget.skips_computed(above as f32, max, 0.0));
            }
        }
        // Gentle slopes: a tile has no more than its keys.
        let gentle = Budget::new(Horizon::default(), 1e-4, 1, 128, 126.0).unwrap();
        assert_eq!(gentle.tile, gentle.computed);
        assert!(gentle.tail > gentle.tile + 6.0);
        let shares: f64 = (1..100_000).map(|t| (-share(t)).exp2()).sum();
        assert!(shares <= 1.0 && shares > 0.9999);
    }

    /// Of keys that are the centre, only the slack is above the scores: those that f32 makes, in any order.
    #[test]
    fn names_are_read_as_they_are_written() {
        for (horizon, name) in [
            (Horizon::Off, "off"),
            (Horizon::Bitwise, "bitwise"),
            (Horizon::default(), "certified"),
            (Horizon::Certified { tolerance: 2e-7 }, "certified:2e-7"),
        ] {
            assert_eq!(horizon.to_string(), name);
            assert_eq!(name.parse(), Ok(horizon));
        }
        for name in [
            "",
            "Off",
            "certified:",
            "certified:x",
            "certified:0",
            "certified:nan",
            "certified:0.6",
        ] {
            assert!(name.parse::<Horizon>().is_err(), "{name}");
        }
    }

    #[test]
    fn slack_covers_the_rounding_of_scores() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (scale, slope) = (0.5f32, 0.37f32);
        let horizon = Horizon::default();
        let budget = Budget::new(horizon, slope, 1, 128, 126.0).unwrap();
        let mut needed = 0;
        for head_dim in [8, 64, 256, 512].repeat(100) {
            let [q, k]: [Vec<f32>; 2] = std::array::from_fn(|_| {
                (0..head_dim)
                    .map(|_| random.random_range(-30.0..30.0))
                    .collect()
            });
            let products = || q.iter().zip(&k);
            let exact: f64 = products().map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let bound = RowBound::new(
                budget,
                (scale, None),
                head_dim,
                (exact, norm(&q)),
                norm(&k) as f32 * (1.0 + f32::EPSILON),
            );
            let sums = [
                products().fold(0.0, |sum, (&q, &k)| q * k + sum),
                products()
                    .rev()
                    .fold(0.0, |sum, (&q, &k)| q.mul_add(k, sum)),
                products().map(|(q, k)| q * k).sum::<f32>(),
            ];
            for distance in [0.0f32, 1000.0, 1e6] {
                let above = bound.above(0.5f32.powi(58), distance.into());
                for dot in sums {
                    let score = dot * (scale * std::f32::consts::LOG2_E)
                        - slope * std::f32::consts::LOG2_E * distance;
                    assert!(f64::from(score) <= above, "{head_dim}: {score}, {above}");
                    needed += usize::from(f64::from(score) > above - bound.slack);
                }
            }
        }
        assert!(needed > 100, "{needed}");
    }
}
