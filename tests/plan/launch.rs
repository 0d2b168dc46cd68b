//! Launches, and the table of kernels that they are made from.

use flash_alibi::kernels;
use flash_alibi::plan::{Architecture, Executor, Launch, Operand, Plan, Swizzle, TensorMap};
use flash_alibi_testing::emulator::Emulator;

use super::{DEVICE, dense, layer};

/// What an executor does not have, it refuses: nothing is launched in another form.
#[test]
fn clusters_and_tensor_maps_are_refused() {
    let plan = Plan::prefill(&layer((1, 1), 64), &dense(1, 5, 5, (1, 1), 64), &DEVICE).unwrap();
    let [plain] = plan.launches() else {
        panic!("{:?}", plan.launches())
    };
    assert_eq!(plain.architecture(), Architecture::Sm80);
    assert!(plain.check_plain().is_ok());
    let emulator = Emulator::new(1);
    let refused = |launch: &Launch| {
        // SAFETY: the emulator checks every access itself.
        let on_emulator = unsafe { emulator.launch(launch, &[]) }.unwrap_err();
        let error = launch.check_plain().unwrap_err().to_string();
        assert_eq!(on_emulator.to_string(), error);
        error
    };
    let mut in_clusters = plain.clone();
    in_clusters.cluster = [2, 1, 1];
    assert_eq!(
        refused(&in_clusters),
        "launch: found prefill_dense_f16_d64 with clusters of [2, 1, 1] blocks, expected blocks that are in no cluster"
    );
    let mut mapped = plain.clone();
    mapped.tensor_maps.push(TensorMap {
        operand: Operand::K,
        dims: vec![64, 5],
        strides: vec![128],
        tile: vec![64, 64],
        swizzle: Swizzle::Bytes128,
    });
    assert_eq!(
        refused(&mapped),
        "launch: found prefill_dense_f16_d64 with 1 tensor maps, expected none"
    );
}

/// The table names the kernels that there are, each in its file, and no others.
#[test]
fn the_table_has_every_kernel() {
    let mut listed: Vec<(&str, &str)> = (kernels::NAMES.iter())
        .map(|&(architecture, file, name)| {
            let embedded = kernels::named(file).unwrap();
            assert_eq!(embedded.architecture, architecture);
            (file, name)
        })
        .collect();
    let files = kernels::ALL
        .iter()
        .filter(|file| !file.name.starts_with("tests/"));
    let mut compiled: Vec<(&str, &str)> = files
        .flat_map(|file| {
            let entries = file.ptx.split(".entry ").skip(1);
            entries.map(|entry| (file.name, entry.split('(').next().unwrap().trim()))
        })
        .collect();
    listed.sort_unstable();
    compiled.sort_unstable();
    assert_eq!(listed, compiled);
}
