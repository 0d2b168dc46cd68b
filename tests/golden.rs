//! All golden files through the fast path and the oracle.

use std::path::PathBuf;

#[cfg(feature = "ptx")]
use flash_alibi::Attention;
#[cfg(feature = "ptx")]
use flash_alibi::plan::{Addresses, Call, Device, Plan};
use flash_alibi::{Horizon, cpu};
#[cfg(feature = "ptx")]
use flash_alibi_testing::emulator::{HOPPER, Planner};
#[cfg(feature = "ptx")]
use flash_alibi_testing::golden::Runner;
use flash_alibi_testing::golden::{self, Case, Computed, Golden, Stored};

fn cases() -> Vec<Golden> {
    // Tests run in the package's folder, wherever it is.
    let files = golden::find(&[PathBuf::from("golden")]).unwrap();
    assert_eq!(files.len(), 19, "a golden file is missing or new");
    files
        .iter()
        .map(|file| Golden::read(file).unwrap())
        .collect()
}

/// What computes.
#[derive(Clone, Copy)]
enum Path {
    Cpu,
    /// The kernels that a planner chooses, under the emulator.
    #[cfg(feature = "ptx")]
    Emulator(&'static Planner),
}

impl Path {
    fn compute<T: Stored>(self, case: &Case<T>) -> Computed {
        match self {
            Self::Cpu => {
                let result = cpu::attend(&case.attention, &case.inputs().unwrap()).unwrap();
                Computed {
                    out: result.out.iter().map(|x| x.to_f32().into()).collect(),
                    lse: result.lse.iter().map(|&x| x.into()).collect(),
                }
            }
            #[cfg(feature = "ptx")]
            Self::Emulator(planner) => case.launch(Runner::Emulator(planner)).unwrap().0,
        }
    }

    /// Dense, and with a horizon.
    fn keeps_the_contract(self) {
        fn check<T: Stored>(path: Path, mut case: Case<T>) {
            for horizon in [Horizon::Off, Horizon::default()] {
                case.attention = case.attention.with_horizon(horizon).unwrap();
                judge(&case, &path.compute(&case));
            }
        }
        for golden in cases() {
            match golden {
                Golden::F16(case) => check(self, case),
                Golden::Bf16(case) => check(self, case),
                Golden::F32(case) => check(self, case),
            }
        }
    }
}

fn judge<T: Stored>(case: &Case<T>, computed: &Computed) {
    let accuracy = case.judge(computed);
    let (name, horizon, limit) = (&case.name, case.attention.horizon(), accuracy.out_limit());
    assert!(
        accuracy.passes(),
        "{name}, {horizon}: {accuracy:?}, limit {limit:e}"
    );
}

#[test]
fn the_fast_path_keeps_the_contract() {
    Path::Cpu.keeps_the_contract();
}

#[cfg(feature = "ptx")]
#[test]
fn the_prefill_kernel_keeps_the_contract_under_the_emulator() {
    Path::Emulator(&Plan::prefill).keeps_the_contract();
}

#[cfg(feature = "ptx")]
fn on_hopper(attention: &Attention, call: &Call, _: &Device) -> flash_alibi::Result<Plan> {
    Plan::prefill(attention, call, &HOPPER)
}

/// They take every golden file. None has keys enough for a horizon to change the launches, so each runs once for all.
#[cfg(feature = "ptx")]
#[test]
fn the_kernels_for_compute_capability_9_keep_the_contract_under_the_emulator() {
    fn check<T: Stored>(mut case: Case<T>) {
        let planner: &Planner = &|attention, call, device| {
            for horizon in [Horizon::default(), Horizon::Bitwise] {
                let attention = attention.clone().with_horizon(horizon)?;
                let launches = on_hopper(&attention, call, device)?.launches().len();
                assert_eq!(launches, 1, "{horizon}: kernels for bounds come first");
            }
            on_hopper(attention, call, device)
        };
        case.attention = case.attention.with_horizon(Horizon::Off).unwrap();
        let (computed, kernels) = case.launch(Runner::Emulator(planner)).unwrap();
        let dense = kernels.len() == 1 && kernels[0].starts_with("wgmma_prefill");
        assert!(dense, "{}: {kernels:?}", case.name);
        judge(&case, &computed);
    }
    for golden in cases() {
        match golden {
            Golden::F16(case) => check(case),
            Golden::Bf16(case) => check(case),
            Golden::F32(case) => panic!("{} is f32", case.name),
        }
    }
}

#[cfg(feature = "ptx")]
#[test]
fn the_decode_kernels_keep_the_contract_under_the_emulator() {
    Path::Emulator(&|attention, call, device| Plan::decode_with_splits(attention, call, device, 3))
        .keeps_the_contract();
}

/// Goldens, with more keys before theirs: what the horizon leaves out changes no more than it certifies.
fn the_horizon_is_within_its_certificate(seqlen_k: usize, path: Path, goldens: &[Golden]) {
    fn check<T: Stored>(case: &Case<T>, seqlen_k: usize, path: Path) -> [usize; 2] {
        let of = |horizon| {
            let attention = case.attention.clone().with_horizon(horizon).unwrap();
            let case = case.with_context(attention, seqlen_k);
            (path.compute(&case), case.largest_value())
        };
        let ((whole, largest), (found, _)) = (of(Horizon::Off), of(Horizon::default()));
        let tolerance = f64::from(Horizon::default().tolerance());
        // Of the type, and of f32.
        let ulp = match T::NAME {
            "f16" => 0.5f64.powi(10),
            _ => 0.5f64.powi(7),
        };
        let mut differ = 0;
        for (whole, found) in whole.out.iter().zip(&found.out) {
            differ += usize::from(whole != found);
            let rounding = if whole == found {
                0.0
            } else {
                ulp * whole.abs() + 2e-6
            };
            let difference = (whole - found).abs();
            assert!(
                difference <= 2.0 * tolerance * largest + rounding,
                "{}: {found}, {whole}",
                case.name
            );
        }
        for (whole, found) in whole.lse.iter().zip(&found.lse) {
            let rounding = 5e-7 * whole.abs().max(1.0);
            let close = whole == found || (whole - found).abs() <= tolerance + rounding;
            assert!(close, "{}: lse {found}, {whole}", case.name);
        }
        let (bitwise, _) = of(Horizon::Bitwise);
        assert!(
            bitwise.out == whole.out && bitwise.lse == whole.lse,
            "{}",
            case.name
        );
        println!("{}: {differ} of {}", case.name, whole.out.len());
        [differ, whole.out.len()]
    }
    for golden in goldens {
        let [differ, all] = match golden {
            Golden::F16(case) => check(case, seqlen_k, path),
            Golden::Bf16(case) => check(case, seqlen_k, path),
            Golden::F32(case) => panic!("{} is f32", case.name),
        };
        assert!(differ <= all / 1000, "{differ} of {all}");
    }
}

#[test]
fn the_horizon_is_within_its_certificate_on_the_cpu() {
    the_horizon_is_within_its_certificate(4099, Path::Cpu, &cases());
}

#[cfg(feature = "ptx")]
#[test]
fn the_horizon_is_within_its_certificate_in_the_prefill_kernel() {
    the_horizon_is_within_its_certificate(2309, Path::Emulator(&Plan::prefill), &cases());
}

/// Some of them: blocks of many rows take long to emulate.
#[cfg(feature = "ptx")]
#[test]
fn the_horizon_is_within_its_certificate_in_the_kernels_for_compute_capability_9() {
    let planner: &Planner = &|attention, call, device| {
        let plan = on_hopper(attention, call, device)?;
        let launches = plan.launches_at(&Addresses::default());
        let kernel = launches.last().map(|launch| launch.kernel);
        let expected = match attention.horizon() {
            Horizon::Off => "wgmma_prefill",
            _ => "wgmma_horizon",
        };
        assert!(
            kernel.is_some_and(|kernel| kernel.starts_with(expected)),
            "{kernel:?}"
        );
        Ok(plan)
    };
    let few = |golden: &Golden| match golden {
        Golden::F16(case) => ["far_needle_d64_f16", "offset_far_million"].contains(&&*case.name),
        Golden::Bf16(case) => case.name.starts_with("large_logits_d128"),
        Golden::F32(_) => false,
    };
    let few: Vec<Golden> = cases().into_iter().filter(few).collect();
    assert_eq!(few.len(), 3);
    the_horizon_is_within_its_certificate(2309, Path::Emulator(planner), &few);
}

/// Of so few keys nothing is left out.
#[test]
fn the_horizon_changes_no_bit_of_short_sequences() {
    fn check<T: Stored>(case: &Case<T>) {
        let bits = |horizon| {
            let attention = case.attention.clone().with_horizon(horizon).unwrap();
            let result = cpu::attend(&attention, &case.inputs().unwrap()).unwrap();
            let out = result.out.iter().map(|x| x.to_f32());
            let lse = result.lse.iter().copied();
            out.chain(lse).map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(
            bits(Horizon::default()) == bits(Horizon::Off),
            "{}",
            case.name
        );
    }
    for golden in cases() {
        match golden {
            Golden::F16(case) => check(&case),
            Golden::Bf16(case) => check(&case),
            Golden::F32(case) => check(&case),
        }
    }
}

#[test]
fn the_oracle_agrees_to_the_rounding_of_the_files() {
    fn check<T: Stored>(case: &Case<T>) {
        let result = cpu::oracle::attend(&case.attention, &case.inputs().unwrap()).unwrap();
        let accuracy = case.judge(&Computed {
            out: result.out,
            lse: result.lse,
        });
        // The files hold f32, and the program that made them had 1/sqrt(head_dim) in f64: the scores, of up to 75, differ
        // by the rounding of a scale in f32.
        let within = accuracy.out_error <= 1e-6 && accuracy.lse_error <= 1e-5;
        assert!(within, "{}: {accuracy:?}", case.name);
    }
    for golden in cases() {
        match golden {
            Golden::F16(case) => check(&case),
            Golden::Bf16(case) => check(&case),
            Golden::F32(case) => check(&case),
        }
    }
}
