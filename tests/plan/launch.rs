//! Launches, and the table of kernels that they are made from.

use flash_alibi::kernels::{self, AttentionParams, Params as _};
use flash_alibi::plan::{
    Addresses, Architecture, Dtype, Executor, Launch, Operand, Plan, Swizzle, TensorMap,
};
use flash_alibi_testing::emulator::Emulator;

use super::{DEVICE, dense, layer};

fn plain() -> Launch {
    let plan = Plan::prefill(&layer((1, 1), 64), &dense(1, 5, 5, (1, 1), 64), &DEVICE).unwrap();
    let [launch] = plan.launches() else {
        panic!("{:?}", plan.launches())
    };
    launch.clone()
}

/// What an executor does not have, it refuses: nothing is launched in another form.
#[test]
fn clusters_and_tensor_maps_are_refused() {
    let plain = plain();
    assert_eq!(plain.architecture(), Architecture::Sm80);
    assert!(plain.is_plain() && plain.check_plain().is_ok());
    let mut in_clusters = plain.clone();
    in_clusters.cluster = [2, 1, 1];
    let error = in_clusters.check_plain().unwrap_err().to_string();
    assert_eq!(
        error,
        "launch: found prefill_dense_f16_d64 with clusters of [2, 1, 1] blocks, expected blocks that are in no cluster"
    );
    // SAFETY: the emulator checks every access itself.
    let on_emulator = unsafe { Emulator::new(1).launch(&in_clusters, &[]) }.unwrap_err();
    assert_eq!(on_emulator.to_string(), error);

    let mut mapped = plain.clone();
    mapped.tensor_maps.push(matrix(Operand::K, 5));
    assert!(!mapped.is_plain() && mapped.check_unclustered().is_ok());
    assert_eq!(
        mapped.check_plain().unwrap_err().to_string(),
        "launch: found prefill_dense_f16_d64 with 1 tensor maps, expected none"
    );
    // A kernel that takes no maps, and parameters that have no addresses.
    let launched = |params: &[u8]| {
        // SAFETY: as above.
        let result = unsafe { Emulator::new(1).launch(&mapped, params) };
        result.unwrap_err().to_string()
    };
    let params = [0; size_of::<AttentionParams>()];
    assert_eq!(
        launched(&params),
        "prefill_dense_f16_d64 takes 1 parameters, and the launch has 2"
    );
    let expected = format!(
        "params: found 8 bytes, expected the {} of AttentionParams",
        params.len()
    );
    assert_eq!(launched(&params[..8]), expected);
}

/// Rows of 96 halves, in tiles of 16 rows and 64 columns.
fn matrix(operand: Operand, rows: u64) -> TensorMap {
    TensorMap {
        operand,
        dtype: Dtype::F16,
        dims: vec![96, rows],
        strides: vec![192],
        tile: vec![64, 16],
        swizzle: Swizzle::Bytes128,
    }
}

/// Tiles at the ends of both dimensions are partly outside.
#[test]
fn a_kernel_copies_tiles_by_tensor_maps() {
    let rows = 40;
    let call = dense(1, rows, rows, (1, 1), 96);
    let plan = Plan::prefill(&layer((1, 1), 96), &call, &DEVICE).unwrap();
    let mut launch = plain();
    launch.file = kernels::named("tests/sm90/tile").unwrap();
    launch.kernel = "copy_tile";
    launch.block = 32;
    launch.shared_bytes = 0;
    launch.tensor_maps = [Operand::Q, Operand::Out]
        .map(|operand| matrix(operand, rows as u64))
        .to_vec();
    let values: Vec<u16> = (1..).take(96 * rows).collect();
    for (tiles, seed) in [(6, 1), (6, 2), (4, 3)] {
        launch.grid = tiles;
        let emulator = Emulator::new(seed);
        let memory = &emulator.memory;
        let out = memory.upload(&vec![0u16; values.len()]).unwrap();
        let addresses = Addresses {
            q: memory.upload(&values).unwrap().0,
            out: out.0,
            ..Addresses::default()
        };
        // SAFETY: the emulator checks every access itself.
        unsafe { emulator.launch(&launch, plan.params(&addresses).bytes()) }.unwrap();
        // Two tiles a row of tiles.
        let mut expected = values.clone();
        expected[96 * rows.min(tiles as usize / 2 * 16)..].fill(0);
        let found = memory.download::<u16>(out, values.len()).unwrap();
        assert_eq!(found, expected, "{tiles} tiles");
    }
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
